//! Instance norm without affine (Ulyanov, Vedaldi and Lempitsky 2016), fused with a residual add and LeakyReLU.
//!
//! For every sample n and channel c, over its S = D·H·W voxels: mean = Σ x / S, rstd = 1 / √(Σ (x − mean)² / S + eps) (the biased
//! variance), x̂ = (x − mean) · rstd, and y = act(x̂ + residual), where act(z) = z for z > 0, else slope · z; without a slope
//! act(z) = z.
//!
//! Backward, with means over the voxels: dz = dy where y > 0, else slope · dy (y and z have one sign; at 0 this is PyTorch's
//! rule); dresidual = dz; dx = rstd · (dz − mean(dz) − x̂ · mean(dz · x̂)). Without a residual x̂ follows from y alone, so x is not
//! read unless the slope is too small to divide by (below [`MIN_INVERTIBLE_SLOPE`]): a caller that no longer has x may pass y.
//!
//! x, residual, y `[N, D, H, W, C]` in f32 or f64, on CUDA in f32, bf16 or f16 with f32 arithmetic; mean and rstd `[N, C]`, of
//! x's dtype, f32 for bf16 and f16. One voxel per sample has no variance and is an error, as in PyTorch; so is any zero-sized
//! axis. The slope must not be negative.

mod cpu;
pub(crate) mod cuda;

use crate::check::{expect_same, expect_sums, sum_dtype};
use engine::{Device, Error, Result, Tensor};

const OP: &str = "instance_norm";

/// From here up, backward recovers x̂ from y; a smaller slope leaves too little of it.
pub const MIN_INVERTIBLE_SLOPE: f64 = 1e-3;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    pub eps: f64,
    pub slope: Option<f64>,
}

/// mean and rstd are `[N, C]`.
pub struct Output {
    pub y: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
}

pub struct Grads {
    pub dx: Tensor,
    pub dresidual: Option<Tensor>,
}

pub fn forward(x: &Tensor, residual: Option<&Tensor>, p: Params) -> Result<Output> {
    let [n, .., c] = check(x, p)?;
    if let Some(residual) = residual {
        expect_same(OP, ("x", x), ("residual", residual))?;
    }
    match x.device() {
        Device::Cpu => cpu::forward(x, residual, p),
        Device::Cuda(_) => cuda::forward(x, residual, p),
        Device::Meta => {
            let moment = || Tensor::empty(&[n, c], sum_dtype(x.dtype()), x.device());
            Ok(Output { y: x.new_empty(x.dims())?, mean: moment()?, rstd: moment()? })
        }
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// y gives the side of the LeakyReLU. dresidual is Some when `has_residual`.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    has_residual: bool,
    p: Params,
) -> Result<Grads> {
    let [n, .., c] = check(x, p)?;
    expect_same(OP, ("x", x), ("dy", dy))?;
    expect_same(OP, ("x", x), ("y", y))?;
    expect_sums(OP, x, ("mean", mean), &[n, c])?;
    expect_sums(OP, x, ("rstd", rstd), &[n, c])?;
    match x.device() {
        Device::Cpu => cpu::backward(dy, x, y, mean, rstd, has_residual, p),
        Device::Cuda(_) => cuda::backward(dy, x, y, mean, rstd, has_residual, p),
        Device::Meta => {
            let invertible = !has_residual && p.slope.is_none_or(|s| s >= MIN_INVERTIBLE_SLOPE);
            let dz = if invertible { None } else { Some(x.new_empty(x.dims())?) };
            Ok(Grads { dx: x.new_empty(x.dims())?, dresidual: dz.filter(|_| has_residual) })
        }
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// The axes of x, when it can be normalised.
fn check(x: &Tensor, p: Params) -> Result<[usize; 5]> {
    let dims @ [n, d, h, w, c] = x.ndhwc(OP)?;
    if n == 0 || c == 0 || d * h * w <= 1 {
        return Err(Error::shape(
            OP,
            format!("{dims:?}: needs more than one value per sample and channel; use a larger input or fewer stages"),
        ));
    }
    if !(p.eps >= 0.0 && p.eps.is_finite()) {
        return Err(Error::invalid(OP, format!("eps is {}; it must be 0 or a small positive number", p.eps)));
    }
    if p.slope.is_some_and(|s| !(s >= 0.0 && s.is_finite())) {
        return Err(Error::invalid(OP, format!("slope is {:?}; it must be 0 or positive", p.slope)));
    }
    Ok(dims)
}
