//! Sum over all axes but the last: `y[c] = sum over r of x[r, c]`, the gradient of a bias.
//!
//! x is `[.., C]` with rows r over all other axes, y `[C]`. f32, bf16 and, on CUDA, f16 become f32 (on the CPU summed in f64), f64 on
//! the CPU f64. Without rows the sum is zero; a scalar has no axis to keep and is an error.

pub(crate) mod cpu;
mod cuda;

use crate::check::sum_dtype;
use engine::{Device, Error, Result, Tensor};

/// `[.., C]` -> `[C]`.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "sum_rows";
    if x.rank() == 0 {
        return Err(Error::shape(OP, "expected [.., C], got a scalar"));
    }
    match x.device() {
        Device::Cpu => cpu::forward(OP, x),
        Device::Cuda(_) => cuda::forward(OP, x),
        Device::Meta => Tensor::empty(&[x.channels()], sum_dtype(x.dtype()), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

#[cfg(test)]
mod tests;
