//! LeakyReLU: y = x where x > 0, else slope · x, any shape; empty tensors give empty results.
//! Backward: dx = dy where x > 0, else slope · dy (the slope at x = 0 too, as in PyTorch).

mod cpu;
mod cuda;

use crate::check::expect_same;
use engine::{Device, Error, Result, Tensor};

const OP: &str = "leaky_relu";

/// The slope is rounded to the dtype of the arithmetic: x's, and f32 for bf16 and f16.
pub fn forward(x: &Tensor, slope: f64) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::forward(x, slope),
        Device::Cuda(_) => cuda::forward(x, slope),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// Errors when dy and x differ in shape or dtype.
pub fn backward(dy: &Tensor, x: &Tensor, slope: f64) -> Result<Tensor> {
    expect_same(OP, ("x", x), ("dy", dy))?;
    match x.device() {
        Device::Cpu => cpu::backward(dy, x, slope),
        Device::Cuda(_) => cuda::backward(dy, x, slope),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}
