//! Layer norm over the last axis (Ba, Kiros and Hinton 2016). For every row of C values
//! mean = Σ x / C, rstd = 1 / √(Σ (x − mean)² / C + eps) (the biased variance), x̂ = (x − mean) · rstd,
//! y = x̂ · weight + bias, or y = x̂ without affine.
//!
//! Backward, with g = dy · weight and means over the row: dx = rstd · (g − mean(g) − x̂ · mean(g · x̂)),
//! dweight = Σ dy · x̂ and dbias = Σ dy over all rows, summed in fixed blocks of rows in a fixed order.
//!
//! x `[…, C]` with C >= 1 in f32 or f64, on CUDA in f32, bf16 or f16 with f32 arithmetic; weight and bias `[C]`, mean and rstd
//! `[rows]`, and the gradients dweight and dbias are of x's dtype, f32 for bf16 and f16. No rows give empty results (and zero
//! dweight and dbias); C = 0 is an error.

mod cpu;
mod cuda;

use crate::check::{expect_same, expect_sums, sum_dtype};
use engine::{Device, Error, Result, Tensor};

const OP: &str = "layer_norm";

pub struct Output {
    pub y: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
}

pub struct Grads {
    pub dx: Tensor,
    pub dweight: Option<Tensor>,
    pub dbias: Option<Tensor>,
}

/// affine = (weight `[C]`, bias `[C]`).
pub fn forward(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> Result<Output> {
    check_x(x)?;
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::invalid(OP, format!("eps is {eps}; it must be 0 or a small positive number")));
    }
    if let Some((weight, bias)) = affine {
        expect_sums(OP, x, ("weight", weight), &[x.channels()])?;
        expect_sums(OP, x, ("bias", bias), &[x.channels()])?;
    }
    match x.device() {
        Device::Cpu => cpu::forward(x, affine, eps),
        Device::Cuda(_) => cuda::forward(x, affine, eps),
        Device::Meta => {
            let moment = || Tensor::empty(&[x.rows()], sum_dtype(x.dtype()), x.device());
            Ok(Output { y: x.new_empty(x.dims())?, mean: moment()?, rstd: moment()? })
        }
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// mean and rstd are the forward pass's. dweight and dbias are Some when there is a weight.
pub fn backward(dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, mean: &Tensor, rstd: &Tensor) -> Result<Grads> {
    check_x(x)?;
    expect_same(OP, ("x", x), ("dy", dy))?;
    expect_sums(OP, x, ("mean", mean), &[x.rows()])?;
    expect_sums(OP, x, ("rstd", rstd), &[x.rows()])?;
    if let Some(weight) = weight {
        expect_sums(OP, x, ("weight", weight), &[x.channels()])?;
    }
    match x.device() {
        Device::Cpu => cpu::backward(dy, x, weight, mean, rstd),
        Device::Cuda(_) => cuda::backward(dy, x, weight, mean, rstd),
        Device::Meta => {
            let share = || weight.map(|w| w.new_empty(w.dims())).transpose();
            Ok(Grads { dx: x.new_empty(x.dims())?, dweight: share()?, dbias: share()? })
        }
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

fn check_x(x: &Tensor) -> Result<()> {
    if x.rank() == 0 || x.channels() == 0 {
        return Err(Error::shape(OP, format!("x is {:?}; its last axis must have at least one element", x.dims())));
    }
    Ok(())
}
