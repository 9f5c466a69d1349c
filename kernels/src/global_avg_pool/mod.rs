//! Mean over space: y[n, c] = Σ x[n, d, h, w, c] / (D·H·W), `[N, D, H, W, C]` -> `[N, C]`.
//! Backward spreads evenly: dx[n, d, h, w, c] = dy[n, c] / (D·H·W). No samples or channels give empty results; a sample without
//! voxels has no mean and is an error.

mod cpu;
mod cuda;

use crate::check::expect_dims;
use engine::{Device, Error, Result, Tensor};

const OP: &str = "global_avg_pool";

pub fn forward(x: &Tensor) -> Result<Tensor> {
    let [n, .., c] = check(&x.ndhwc(OP)?)?;
    match x.device() {
        Device::Cpu => cpu::forward(x),
        Device::Cuda(_) => cuda::forward(x),
        Device::Meta => x.new_empty(&[n, c]),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// dx, of the forward input's shape `x_dims`.
pub fn backward(dy: &Tensor, x_dims: &[usize]) -> Result<Tensor> {
    let [n, .., c] = check(x_dims)?;
    expect_dims(OP, ("dy", dy), &[n, c], &format!("x {x_dims:?}"))?;
    match dy.device() {
        Device::Cpu => cpu::backward(dy, x_dims),
        Device::Cuda(_) => cuda::backward(dy, x_dims),
        Device::Meta => dy.new_empty(x_dims),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

fn check(x_dims: &[usize]) -> Result<[usize; 5]> {
    match *x_dims {
        [n, d, h, w, c] if ![d, h, w].contains(&0) => Ok([n, d, h, w, c]),
        _ => Err(Error::shape(OP, format!("x is {x_dims:?}; it must be [N, D, H, W, C] with at least one voxel"))),
    }
}
