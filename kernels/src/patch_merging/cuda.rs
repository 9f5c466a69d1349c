use super::{Order, merged};
use crate::cuda::{CHUNK, chunked, copying, strided, suffix, version};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("patch_merging", include_bytes!("../../images/patch_merging.fatbin.zst"));

/// `PatchMergingArgs` of patch_merging.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    n: i64,
    depth: i64,
    height: i64,
    width: i64,
    chunks: i64,
    parities: u32,
    reserved: i32,
}

/// x has the dims `[B, D, H, W, C]`.
pub(super) fn gather(x: &Tensor, dims: [usize; 5], order: Order) -> Result<Tensor> {
    suffix(super::OP, x)?;
    let mut y = x.new_empty(&merged(dims))?;
    let size = x.dtype().size();
    let unit = if chunked(dims[4], x, &[&y])? { CHUNK } else { size };
    let n = y.numel() * size / unit;
    let args = args(dims, order, (x.device_ptr()?, y.device_ptr_mut()?), (n, unit / size));
    let kernel = format!("patch_merging_gather_{}", copying(unit));
    // SAFETY: x and y have these shapes, and C elements are whole units.
    unsafe { launch(x.device(), &IMAGE, &kernel, strided(x, n)?, &args)? };
    Ok(y)
}

/// To the dims `[B, D, H, W, C]`.
pub(super) fn scatter(dy: &Tensor, dims: [usize; 5], order: Order) -> Result<Tensor> {
    let mut dx = dy.new_empty(&dims)?;
    let (version, chunk) = version(super::OP, dy, chunked(dims[4], dy, &[&dx])?)?;
    let n = dx.numel() / chunk;
    let args = args(dims, order, (dy.device_ptr()?, dx.device_ptr_mut()?), (n, chunk));
    // SAFETY: dy and dx have these shapes and the kernel's dtype, and C elements are whole chunks.
    unsafe { launch(dy.device(), &IMAGE, &format!("patch_merging_scatter_{version}"), strided(dy, n)?, &args)? };
    Ok(dx)
}

/// For `n` chunks of so many elements in the output.
fn args([_, d, h, w, c]: [usize; 5], order: Order, (from, to): (u64, u64), (n, chunk): (usize, usize)) -> Args {
    let slots = order.parities().into_iter().enumerate();
    let parities = slots.fold(0, |all, (s, [pd, ph, pw])| all | ((pd << 2 | ph << 1 | pw) << (3 * s)) as u32);
    let [n, depth, height, width, chunks] = [n, d, h, w, c / chunk].map(|v| v as i64);
    Args { from, to, n, depth, height, width, chunks, parities, reserved: 0 }
}
