//! Zeroes whole rows with probability p and scales the others by 1 / (1 − p): what PyTorch's `Dropout1d` does to a matrix.
//! Row r of x, its axes but the last flattened, is dropped when `engine::random::uniform(seed, r)` < p. Empty tensors give empty
//! results.

mod cpu;
mod cuda;

use engine::{Device, Error, Result, Tensor};

const OP: &str = "row_dropout";

/// x `[…, C]`, p in [0, 1). Backward is the same map applied to dy.
pub fn forward(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::invalid(OP, format!("p is {p}; it must be at least 0 and below 1")));
    }
    match x.device() {
        Device::Cpu => cpu::forward(x, p, seed),
        Device::Cuda(_) => cuda::forward(x, p, seed),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}
