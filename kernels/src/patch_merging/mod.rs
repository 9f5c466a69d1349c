//! Gathers 2x2x2 neighbours into channels.
use engine::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    Monai13,
    Standard,
}

/// `[B, D, H, W, C]` -> `[B, ceil(D/2), ceil(H/2), ceil(W/2), 8C]`.
pub fn gather(_x: &Tensor, _order: Order) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// The transpose of gather.
pub fn scatter(_dy: &Tensor, _x_dims: &[usize], _order: Order) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
