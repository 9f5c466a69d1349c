use crate::cuda::{by_chunks, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("relu", include_bytes!("../../images/relu.fatbin.zst"));

/// `ReluArgs` of relu.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    dy: u64,
    y: u64,
    out: u64,
    n: i64,
}

pub fn forward(x: &Tensor) -> Result<Tensor> {
    let mut out = x.new_empty(x.dims())?;
    let args = Args { x: x.device_ptr()?, dy: 0, y: 0, out: out.device_ptr_mut()?, n: x.numel() as i64 };
    let kernel = format!("relu_forward_{}", suffix(super::OP, x)?);
    // SAFETY: x and out have n elements of the kernel's dtype.
    unsafe { launch(x.device(), &IMAGE, &kernel, by_chunks(x)?, &args)? };
    Ok(out)
}

pub fn backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    let mut out = y.new_empty(y.dims())?;
    let args = Args { x: 0, dy: dy.device_ptr()?, y: y.device_ptr()?, out: out.device_ptr_mut()?, n: y.numel() as i64 };
    let kernel = format!("relu_backward_{}", suffix(super::OP, y)?);
    // SAFETY: dy, y and out have n elements of the kernel's dtype.
    unsafe { launch(y.device(), &IMAGE, &kernel, by_chunks(y)?, &args)? };
    Ok(out)
}
