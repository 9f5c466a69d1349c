//! Compiled kernels that are part of the binary, loaded on a device when one of them is first wanted.

use super::compile::{compile, sources};
use super::driver::Gpu;
use super::memory::with_room;
use crate::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::collections::{HashMap, hash_map::Entry};
use std::ffi::CString;

/// The kernels of one source file, compiled for several architectures (a fatbin) and packed with zstd: compilers pack each
/// architecture for itself, and they are nearly alike.
#[derive(Debug)]
pub struct Image {
    name: &'static str,
    packed: &'static [u8],
}

impl Image {
    /// Names must differ from image to image.
    pub const fn new(name: &'static str, packed: &'static [u8]) -> Image {
        Image { name, packed }
    }

    /// The fatbin, in words: the driver wants it aligned to 8 bytes.
    fn unpack(&self) -> Result<Vec<u64>> {
        let damaged = || {
            let name = self.name;
            Error::invalid(
                "launch",
                format!("the image of {name} is damaged: run cargo xtask kernels and build the binary again"),
            )
        };
        let size = zstd_safe::get_frame_content_size(self.packed).ok().flatten().ok_or_else(damaged)?;
        let mut fatbin = vec![0u64; (size as usize).div_ceil(8)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut fatbin);
        zstd_safe::decompress(bytes, self.packed).map_err(|_| damaged())?;
        Ok(fatbin)
    }
}

/// What is loaded on one device, by image.
#[derive(Default)]
pub(super) struct Modules(HashMap<&'static str, Module>);

struct Module {
    handle: sys::CUmodule,
    functions: HashMap<String, Function>,
}

/// A kernel, and the bytes of its only parameter.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Function {
    pub handle: sys::CUfunction,
    pub parameter: usize,
    /// Bytes of dynamic shared memory that launches were allowed so far.
    shared: u32,
}

impl Modules {
    /// Finds a kernel by its name, for launches with so many bytes of dynamic shared memory; loads the image before its first.
    pub fn function(&mut self, gpu: &Gpu, image: &'static Image, name: &str, shared: u32) -> Result<Function> {
        let module = match self.0.entry(image.name) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(wanted) => wanted.insert(Module { handle: load(gpu, image)?, functions: HashMap::new() }),
        };
        let known = module.functions.get(name).copied();
        let mut function = known.map_or_else(|| find(gpu, module.handle, image, name), Ok)?;
        function.allow(gpu, name, shared)?;
        if known != Some(function) {
            module.functions.insert(name.into(), function);
        }
        Ok(function)
    }
}

impl Function {
    /// Raises the limit of dynamic shared memory, which is the function's and not a launch's: lowered, it would fail the launch that
    /// another thread is about to make. Unless it is set, a kernel has 48 KB together with what its own arrays take.
    fn allow(&mut self, gpu: &Gpu, name: &str, shared: u32) -> Result<()> {
        if shared <= self.shared {
            return Ok(());
        }
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded for good.
        gpu.call(format_args!("{shared} bytes of shared memory for kernel {name}"), || unsafe {
            result::function::set_function_attribute(self.handle, limit, shared.cast_signed())
        })?;
        self.shared = shared;
        Ok(())
    }
}

fn load(gpu: &Gpu, image: &Image) -> Result<sys::CUmodule> {
    gpu.outside_capture(&format!("loading the kernels of {}", image.name))?;
    if let Some(folder) = sources() {
        let code = compile(folder, image.name, gpu.properties.compute)?;
        // SAFETY: machine code as the compiler gives it carries its length.
        let load = || unsafe { result::module::load_data(code.as_ptr().cast()) };
        let what = format_args!("loading the kernels of {} that were just compiled", image.name);
        return gpu.call(what, || with_room(gpu, load));
    }
    let fatbin = image.unpack()?;
    // SAFETY: a fatbin carries its length, and it is aligned as the driver's own.
    let load = || unsafe { result::module::load_data(fatbin.as_ptr().cast()) };
    gpu.call(format_args!("loading the kernels of {}", image.name), || with_room(gpu, load))
}

fn find(gpu: &Gpu, module: sys::CUmodule, image: &Image, name: &str) -> Result<Function> {
    gpu.outside_capture(&format!("finding kernel {name}"))?;
    let symbol = CString::new(name).map_err(|e| Error::invalid("launch", format!("kernel name {name:?}: {e}")))?;
    // SAFETY: modules stay loaded until the process ends.
    let handle = gpu.call(format_args!("finding kernel {name} of {}", image.name), || unsafe {
        result::module::get_function(module, symbol)
    })?;
    let size = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function was just found; an index past the last parameter is an error.
        let asked = unsafe { sys::cuFuncGetParamInfo(handle, index, &mut offset, &mut size) };
        asked.result().map(|()| size)
    };
    let (parameter, second): (usize, Result<usize, DriverError>) =
        gpu.call(format_args!("the parameter of kernel {name}"), || Ok((size(0)?, size(1))))?;
    if second.is_ok() {
        return Err(Error::invalid(
            "launch",
            format!("kernel {name} takes more than one parameter; give it one struct"),
        ));
    }
    Ok(Function { handle, parameter, shared: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_unpacked_whole_and_aligned_and_damage_is_an_error() {
        let fatbin: Vec<u8> = (0..10_001u32).map(|i| (i * i / 256) as u8).collect();
        let mut packed = Vec::with_capacity(20_000);
        zstd_safe::compress(&mut packed, &fatbin, 19).expect("packed");
        let packed: &'static [u8] = packed.leak();
        let words = Image::new("kernels", packed).unpack().expect("unpacked");
        assert_eq!(&bytemuck::cast_slice::<u64, u8>(&words)[..fatbin.len()], fatbin);
        for damaged in [&packed[..packed.len() - 1], &packed[1..], &[]] {
            let error = Image::new("gelu", damaged).unpack().expect_err("damaged").to_string();
            assert!(error.starts_with("launch: the image of gelu is damaged: run cargo xtask"), "{error}");
        }
    }
}
