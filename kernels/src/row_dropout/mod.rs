//! Zeroes whole rows with probability p and scales the others by 1 / (1 − p): what PyTorch's `Dropout1d` does to a matrix.
//! Row r of x, its axes but the last flattened, is dropped when `engine::random::uniform(seed, r)` < p. The seed is a tensor on
//! x's device, so that a captured step can be repeated with another. Empty tensors give empty results.

mod cpu;
mod cuda;

use crate::check::{expect_device, expect_dims};
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "row_dropout";

/// A seed as [`forward`] takes it: its lower and its upper half.
pub fn words(seed: u64) -> [i32; 2] {
    [seed as i32, (seed >> 32) as i32]
}

/// The same as a tensor.
pub fn seed(seed: u64, device: Device) -> Result<Tensor> {
    Tensor::from_slice(&words(seed), &[2])?.to_device(device)
}

/// x `[…, C]`, p in [0, 1), seed i32 `[2]` as [`words`] has it. Backward is the same map applied to dy.
pub fn forward(x: &Tensor, p: f64, seed: &Tensor) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::invalid(OP, format!("p is {p}; it must be at least 0 and below 1")));
    }
    if seed.dtype() != DType::I32 {
        return Err(Error::DType { op: OP, got: seed.dtype(), want: "i32 for the seed" });
    }
    expect_dims(OP, ("the seed", seed), &[2], "one seed")?;
    expect_device(OP, x, &[("the seed", seed)])?;
    match x.device() {
        Device::Cpu => cpu::forward(x, p, seed),
        Device::Cuda(_) => cuda::forward(x, p, seed),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}
