//! Zeroes whole rows with probability p, scales the others by 1/(1-p).
use engine::{Result, Tensor};

/// x `[N, C]`; row r is dropped when uniform(seed, r) < p. Backward is the same map applied to dy.
pub fn forward(_x: &Tensor, _p: f64, _seed: u64) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
