//! Mean over space.
use engine::{Result, Tensor};

/// `[N, D, H, W, C]` -> `[N, C]`.
pub fn forward(_x: &Tensor) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
pub fn backward(_dy: &Tensor, _x_dims: &[usize]) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
