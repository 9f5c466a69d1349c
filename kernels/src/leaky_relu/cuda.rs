use crate::cuda::{by_chunks, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("leaky_relu", include_bytes!("../../images/leaky_relu.fatbin.zst"));

/// `LeakyReluArgs` of leaky_relu.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    dy: u64,
    out: u64,
    n: i64,
    slope: f32,
    reserved: i32,
}

pub fn forward(x: &Tensor, slope: f64) -> Result<Tensor> {
    run("leaky_relu_forward", None, x, slope)
}

pub fn backward(dy: &Tensor, x: &Tensor, slope: f64) -> Result<Tensor> {
    run("leaky_relu_backward", Some(dy), x, slope)
}

fn run(kernel: &str, dy: Option<&Tensor>, x: &Tensor, slope: f64) -> Result<Tensor> {
    let mut out = x.new_empty(x.dims())?;
    let args = Args {
        x: x.device_ptr()?,
        dy: dy.map_or(Ok(0), Tensor::device_ptr)?,
        out: out.device_ptr_mut()?,
        n: x.numel() as i64,
        slope: slope as f32,
        reserved: 0,
    };
    let kernel = format!("{kernel}_{}", suffix(super::OP, x)?);
    // SAFETY: x, out and, where the kernel reads it, dy have n elements of the kernel's dtype.
    unsafe { launch(x.device(), &IMAGE, &kernel, by_chunks(x)?, &args)? };
    Ok(out)
}
