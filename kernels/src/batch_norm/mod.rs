//! Batch norm of `[N, C]` on batch statistics, without affine (Ioffe and Szegedy 2015). Per channel, over the N rows:
//! mean = Σ x / N, rstd = 1 / √(Σ (x − mean)² / N + eps) (the biased variance), y = x̂ = (x − mean) · rstd.
//! Backward, with means over the rows: dx = rstd · (dy − mean(dy) − x̂ · mean(dy · x̂)).
//!
//! f32 and f64, on CUDA f32, bf16 and f16 with f32 arithmetic; mean and rstd are `[C]`, of x's dtype, f32 for bf16 and f16. One
//! row has no variance and is an error, as in PyTorch; so is a zero-sized axis.

mod cpu;
mod cuda;

use crate::check::{expect_same, expect_sums, sum_dtype};
use engine::{Device, Error, Result, Tensor};

const OP: &str = "batch_norm";

pub struct Output {
    pub y: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
}

pub fn forward(x: &Tensor, eps: f64) -> Result<Output> {
    let c = check(x)?;
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::invalid(OP, format!("eps is {eps}; it must be 0 or a small positive number")));
    }
    match x.device() {
        Device::Cpu => cpu::forward(x, eps),
        Device::Cuda(_) => cuda::forward(x, eps),
        Device::Meta => {
            let moment = || Tensor::empty(&[c], sum_dtype(x.dtype()), x.device());
            Ok(Output { y: x.new_empty(x.dims())?, mean: moment()?, rstd: moment()? })
        }
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// dx. mean and rstd are the forward pass's.
pub fn backward(dy: &Tensor, x: &Tensor, mean: &Tensor, rstd: &Tensor) -> Result<Tensor> {
    let c = check(x)?;
    expect_same(OP, ("x", x), ("dy", dy))?;
    expect_sums(OP, x, ("mean", mean), &[c])?;
    expect_sums(OP, x, ("rstd", rstd), &[c])?;
    match x.device() {
        Device::Cpu => cpu::backward(dy, x, mean, rstd),
        Device::Cuda(_) => cuda::backward(dy, x, mean, rstd),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// The channels of x, when it can be normalised.
fn check(x: &Tensor) -> Result<usize> {
    match *x.dims() {
        [n, c] if n > 1 && c > 0 => Ok(c),
        _ => Err(Error::shape(
            OP,
            format!("x is {:?}; it must be [N, C] with N > 1, for a channel needs more than one value", x.dims()),
        )),
    }
}
