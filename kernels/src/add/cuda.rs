use crate::cuda::{by_chunks, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("add", include_bytes!("../../images/add.fatbin.zst"));

/// `AddArgs` of add.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    a: u64,
    b: u64,
    out: u64,
    n: i64,
    factor: f32,
    reserved: i32,
}

pub(super) fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out = a.new_empty(a.dims())?;
    sum(a.device_ptr()?, b, out.device_ptr_mut()?)?;
    Ok(out)
}

/// b fits into a from `start` on.
pub(super) fn accumulate(a: &mut Tensor, start: usize, b: &Tensor) -> Result<()> {
    let part = a.device_ptr_mut()? + (start * a.dtype().size()) as u64;
    sum(part, b, part)
}

pub(super) fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    let mut out = x.new_empty(x.dims())?;
    let (n, factor) = (x.numel() as i64, factor as f32);
    let args = Args { a: x.device_ptr()?, b: 0, out: out.device_ptr_mut()?, n, factor, reserved: 0 };
    let kernel = format!("add_scale_{}", suffix("scale", x)?);
    // SAFETY: x and out have n elements of the kernel's dtype.
    unsafe { launch(x.device(), &IMAGE, &kernel, by_chunks(x)?, &args)? };
    Ok(out)
}

/// out = a + b, at addresses of as many elements as b has, of its dtype and on its device.
fn sum(a: u64, b: &Tensor, out: u64) -> Result<()> {
    let args = Args { a, b: b.device_ptr()?, out, n: b.numel() as i64, factor: 0.0, reserved: 0 };
    let kernel = format!("add_forward_{}", suffix(super::OP, b)?);
    // SAFETY: the callers' a and out are such addresses.
    unsafe { launch(b.device(), &IMAGE, &kernel, by_chunks(b)?, &args) }
}
