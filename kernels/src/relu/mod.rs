//! ReLU: y = max(x, 0), any shape; empty tensors give empty results. NaN stays NaN.
//! Backward: dx = dy where y > 0, else 0 (so 0 at x = 0, as in PyTorch).

mod cpu;
mod cuda;

use crate::check::expect_same;
use engine::{Device, Error, Result, Tensor};

const OP: &str = "relu";

pub fn forward(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::forward(x),
        Device::Cuda(_) => cuda::forward(x),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// Errors when dy and y differ in shape or dtype.
pub fn backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    expect_same(OP, ("y", y), ("dy", dy))?;
    match y.device() {
        Device::Cpu => cpu::backward(dy, y),
        Device::Cuda(_) => cuda::backward(dy, y),
        Device::Meta => y.new_empty(y.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: y.dtype(), device }),
    }
}
