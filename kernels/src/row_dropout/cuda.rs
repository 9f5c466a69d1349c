use crate::cuda::{strided, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("row_dropout", include_bytes!("../../images/row_dropout.fatbin.zst"));

/// `RowDropoutArgs` of row_dropout.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    y: u64,
    n: i64,
    channels: i64,
    seed: u64,
    dropped: u64,
    keep: f32,
    reserved: i32,
}

pub fn forward(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
    let mut y = x.new_empty(x.dims())?;
    let args = Args {
        x: x.device_ptr()?,
        y: y.device_ptr_mut()?,
        n: x.numel() as i64,
        channels: x.channels() as i64,
        seed,
        // k / 2^53 < p for whole numbers k below this
        dropped: (p * (1u64 << 53) as f64).ceil() as u64,
        keep: (1.0 / (1.0 - p)) as f32,
        reserved: 0,
    };
    let kernel = format!("row_dropout_forward_{}", suffix(super::OP, x)?);
    // SAFETY: x and y have n elements of the kernel's dtype.
    unsafe { launch(x.device(), &IMAGE, &kernel, strided(x, x.numel())?, &args)? };
    Ok(y)
}
