//! InfoNCE on cosine similarities, with soft targets, in independent groups.
//!
//! G groups; row r of q meets the K rows of k of its own group, r / S. With unit rows `q̂ = q / max(‖q‖, 1e-12)`, k̂ likewise,
//! and temperature τ:
//!
//! ```text
//! z_rj   = q̂_r · k̂_j / τ,    lse_r = log Σ_j exp z_rj
//! loss   = mean over r of Σ_j t_rj (lse_r - z_rj)
//! dz_rj  = dloss / (G S) · (exp(z_rj - lse_r) Σ_i t_ri - t_rj)
//! dq̂_r   = Σ_j dz_rj k̂_j / τ,    dk̂_j = Σ_r dz_rj q̂_r / τ,    dq = (dq̂ - q̂ (q̂ · dq̂)) / ‖q‖
//! ```
//!
//! that is PyTorch's `cross_entropy(normalize(q) @ normalize(k).T / τ, t)`: van den Oord et al., "Representation learning with
//! contrastive predictive coding". The rows of t usually sum to 1, and need not. A row shorter than 1e-12 is divided by that,
//! and its gradient too. Neither pass holds the similarities: they are computed tile by tile, twice in backward (for dq and
//! for dk), with the log-sum-exp saved in between.
//!
//! f32 or f64, one dtype throughout. Errors: shapes or dtypes that do not fit, no rows, no columns, D = 0, groups that do not
//! divide the rows, a temperature that is not positive.

mod cpu;
mod cuda;
mod tile;

use crate::check::expect_device;
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "info_nce";

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    pub temperature: f64,
    pub groups: usize,
}

/// The scalar loss, and τ times the log-sum-exp `[G*S]` of each row of q, for backward.
pub struct Output {
    pub loss: Tensor,
    pub lse: Tensor,
}

/// q `[G*S, D]`, k `[G*K, D]`, targets `[G*S, K]` (rows sum to 1) -> scalar: mean over rows of -sum_j t_j log softmax_j.
pub fn forward(q: &Tensor, k: &Tensor, targets: &Tensor, p: Params) -> Result<Output> {
    check(q, k, targets, p)?;
    match (q.device(), q.dtype()) {
        (Device::Cpu, DType::F32) => cpu::forward::<f32>(q, k, targets, p),
        (Device::Cpu, DType::F64) => cpu::forward::<f64>(q, k, targets, p),
        (Device::Cuda(_), DType::F32) => cuda::forward(q, k, targets, p),
        (Device::Meta, _) => Ok(Output { loss: q.new_empty(&[])?, lse: q.new_empty(&q.dims()[..1])? }),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

/// dloss (scalar) -> dq, and dk where the keys' gradient is wanted.
pub fn backward(
    dloss: &Tensor,
    q: &Tensor,
    k: &Tensor,
    targets: &Tensor,
    lse: &Tensor,
    p: Params,
    keys: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    check(q, k, targets, p)?;
    if lse.dims() != [q.dims()[0]] || dloss.numel() != 1 {
        let detail = format!("lse {:?} and gradient {:?} for q {:?}", lse.shape(), dloss.shape(), q.shape());
        return Err(Error::shape(OP, detail + "; expected [G*S] and []"));
    }
    alike(q, &[("lse", lse), ("the gradient", dloss)])?;
    match (q.device(), q.dtype()) {
        (Device::Cpu, DType::F32) => cpu::backward::<f32>(dloss, q, k, targets, lse, p, keys),
        (Device::Cpu, DType::F64) => cpu::backward::<f64>(dloss, q, k, targets, lse, p, keys),
        (Device::Cuda(_), DType::F32) => cuda::backward(dloss, q, k, targets, lse, p, keys),
        (Device::Meta, _) => {
            let dq = q.new_empty(q.dims())?;
            Ok((dq, if keys { Some(k.new_empty(k.dims())?) } else { None }))
        }
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

fn check(q: &Tensor, k: &Tensor, targets: &Tensor, p: Params) -> Result<()> {
    let fits = match (q.dims(), k.dims(), targets.dims()) {
        (&[rows, d], &[columns, e], &[r, per_group]) => {
            let groups = p.groups;
            let divided = groups > 0 && rows % groups == 0 && columns % groups == 0;
            divided && d == e && d > 0 && rows > 0 && columns > 0 && r == rows && per_group == columns / groups
        }
        _ => false,
    };
    if !fits {
        let detail = format!(
            "q {:?}, k {:?} and targets {:?} must be [G*S, D], [G*K, D] and [G*S, K], none empty, with G = {} groups",
            q.shape(),
            k.shape(),
            targets.shape(),
            p.groups
        );
        return Err(Error::shape(OP, detail));
    }
    if !(p.temperature > 0.0 && p.temperature.is_finite()) {
        return Err(Error::invalid(OP, format!("temperature {} must be positive and finite", p.temperature)));
    }
    alike(q, &[("k", k), ("targets", targets)])
}

/// Errors when the dtypes or the devices differ.
fn alike(q: &Tensor, others: &[(&str, &Tensor)]) -> Result<()> {
    match others.iter().find(|(_, t)| t.dtype() != q.dtype()) {
        Some((_, t)) => Err(Error::DType { op: OP, got: t.dtype(), want: "q's dtype for all inputs" }),
        None => expect_device(OP, q, others),
    }
}

#[cfg(test)]
mod tests;
