//! Starting a kernel.

use super::timeline::What;
use super::{Image, driver::gpu};
use crate::{Device, Error, Result, trace};
use bytemuck::Pod;
use cudarc::driver::result;
use std::sync::LazyLock;

/// Whether every kernel is waited for, so that a failure is known to be its own: the environment variable VOCOE_SYNC is 1.
pub(super) static SYNCHRONOUS: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("VOCOE_SYNC").is_some_and(|v| v == "1"));

/// How many threads run a kernel, and what they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// Puts a kernel into the stream of a CUDA device, after everything that was put there before. A grid without blocks starts
/// nothing. Errors when the kernel is not in the image, its parameter is not as large as `args`, the device refuses, or an
/// earlier kernel failed.
///
/// # Safety
/// `args` must be what the kernel called `name` takes; its pointers must be of live tensors on `device`, not shared where the
/// kernel writes, and large enough for what it reads and writes under this grid.
pub unsafe fn launch<A: Pod>(device: Device, image: &'static Image, name: &str, size: Grid, args: &A) -> Result<()> {
    let gpu = gpu(device)?;
    let Grid { grid, block, shared } = size;
    let function = gpu.modules().function(gpu, image, name, shared)?;
    if function.parameter != size_of::<A>() {
        let (takes, given) = (function.parameter, size_of::<A>());
        return Err(Error::invalid("launch", format!("kernel {name} takes {takes} bytes, and {given} are given")));
    }
    if grid.contains(&0) {
        return Ok(());
    }
    let what = || What { name: name.into(), bytes: trace::bytes_of(bytemuck::bytes_of(args)), grid: Some(size) };
    let start = || {
        gpu.call(format_args!("kernel {name} with {grid:?} blocks of {block:?} threads, {shared} bytes shared"), || {
            // SAFETY: the function is loaded for good, and the driver copies the parameter before it returns; the rest is the caller's.
            unsafe {
                let mut parameters = [std::ptr::from_ref(args).cast_mut().cast()];
                result::launch_kernel(function.handle, grid.into(), block.into(), shared, gpu.stream(), &mut parameters)
            }
        })
    };
    gpu.timed(what, start)?;
    if *SYNCHRONOUS { gpu.synchronize(format_args!("kernel {name}")) } else { Ok(()) }
}
