use crate::cuda::{strided, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("gelu", include_bytes!("../../images/gelu.fatbin.zst"));

/// `GeluArgs` of gelu.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    dy: u64,
    out: u64,
    n: i64,
}

pub fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = x.new_empty(x.dims())?;
    let args = Args { x: x.device_ptr()?, dy: 0, out: y.device_ptr_mut()?, n: x.numel() as i64 };
    let kernel = format!("gelu_forward_{}", suffix(super::OP, x)?);
    // SAFETY: x and y have n elements of the kernel's dtype.
    unsafe { launch(x.device(), &IMAGE, &kernel, strided(x, x.numel())?, &args)? };
    Ok(y)
}

pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dx = x.new_empty(x.dims())?;
    let args = Args { x: x.device_ptr()?, dy: dy.device_ptr()?, out: dx.device_ptr_mut()?, n: x.numel() as i64 };
    let kernel = format!("gelu_backward_{}", suffix(super::OP, x)?);
    // SAFETY: x, dy and dx have n elements of the kernel's dtype.
    unsafe { launch(x.device(), &IMAGE, &kernel, strided(x, x.numel())?, &args)? };
    Ok(dx)
}
