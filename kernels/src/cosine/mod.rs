//! Pairwise cosine similarity: `y[n, m] = a_n · b_m / (max(‖a_n‖, 1e-8) max(‖b_m‖, 1e-8))`.
//!
//! a is `[N, D]`, b `[M, D]`, y `[N, M]`; f32 or f64, products and norms summed in f64. The gradient is that of
//! `torch.cosine_similarity`, which divides by the clamped norm n' = max(n, 1e-8) but lets the gradient pass the clamp:
//!
//! ```text
//! da_n = Σ_m dy[n, m] (b_m / (n'_a n'_b) - y[n, m] a_n / (n_a n'_a))        the second part is 0 where n_a = 0
//! ```
//!
//! and db with the roles exchanged. For norms of 1e-8 and more that is the derivative of the formula. No rows (N or M = 0) give
//! empty outputs and zero gradients; D = 0 is an error, as there is no direction to compare.

pub(crate) mod cpu;
mod cuda;

use crate::check::expect_device;
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "cosine";

/// a `[N, D]`, b `[M, D]` -> `[N, M]`.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check(a, b)?;
    match (a.device(), a.dtype()) {
        (Device::Cpu, DType::F32) => cpu::forward::<f32>(a, b),
        (Device::Cpu, DType::F64) => cpu::forward::<f64>(a, b),
        (Device::Cuda(_), DType::F32) => cuda::forward(a, b),
        (Device::Meta, _) => a.new_empty(&[a.dims()[0], b.dims()[0]]),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

/// dy `[N, M]` -> (da, db).
pub fn backward(dy: &Tensor, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    check(a, b)?;
    if dy.dims() != [a.dims()[0], b.dims()[0]] {
        let detail =
            format!("gradient {:?} for a {:?} and b {:?}; it must be [N, M]", dy.shape(), a.shape(), b.shape());
        return Err(Error::shape(OP, detail));
    }
    if dy.dtype() != a.dtype() {
        return Err(Error::DType { op: OP, got: dy.dtype(), want: "the dtype of a for the gradient" });
    }
    expect_device(OP, a, &[("the gradient", dy)])?;
    match (a.device(), a.dtype()) {
        (Device::Cpu, DType::F32) => cpu::backward::<f32>(dy, a, b),
        (Device::Cpu, DType::F64) => cpu::backward::<f64>(dy, a, b),
        (Device::Cuda(_), DType::F32) => cuda::backward(dy, a, b),
        (Device::Meta, _) => Ok((a.new_empty(a.dims())?, b.new_empty(b.dims())?)),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

fn check(a: &Tensor, b: &Tensor) -> Result<()> {
    match (a.dims(), b.dims()) {
        ([_, d], [_, e]) if d == e && *d > 0 => {}
        _ => {
            let detail = format!("a {:?} and b {:?} must be [N, D] and [M, D] with D > 0", a.shape(), b.shape());
            return Err(Error::shape(OP, detail));
        }
    }
    if a.dtype() != b.dtype() {
        return Err(Error::DType { op: OP, got: b.dtype(), want: "the dtype of a for b" });
    }
    expect_device(OP, a, &[("b", b)])
}

#[cfg(test)]
mod tests;
