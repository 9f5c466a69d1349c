//! GELU with the exact error function (Hendrycks and Gimpel 2016): y = x · Φ(x), Φ(x) = (1 + erf(x / √2)) / 2.
//! Backward: dx = dy · (Φ(x) + x · φ(x)), φ(x) = exp(−x² / 2) / √(2π). Any shape; empty tensors give empty results.

mod cpu;
mod cuda;

pub(crate) use cpu::through;

use crate::check::expect_same;
use engine::{Device, Error, Result, Tensor};

const OP: &str = "gelu";

pub fn forward(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::forward(x),
        Device::Cuda(_) => cuda::forward(x),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// Errors when dy and x differ in shape or dtype.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    expect_same(OP, ("x", x), ("dy", dy))?;
    match x.device() {
        Device::Cpu => cpu::backward(dy, x),
        Device::Cuda(_) => cuda::backward(dy, x),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}
