//! Shifted-window attention from q, k, v.
use engine::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub heads: usize,
    pub window: [usize; 3],
    pub shift: [usize; 3],
}
/// y `[B, D, H, W, C]`; lse `[B, D, H, W, heads]`.
pub struct Output {
    pub y: Tensor,
    pub lse: Tensor,
}
pub struct Grads {
    pub dqkv: Tensor,
    pub dpad: Tensor,
    pub dtable: Tensor,
}

/// qkv `[B, D, H, W, 3C]`; pad `[3C]` is what padded tokens hold (the qkv bias); table `[prod(2 window - 1), heads]`.
pub fn forward(_qkv: &Tensor, _pad: &Tensor, _table: &Tensor, _p: Params) -> Result<Output> {
    Err(engine::Error::invalid("kernel", "not written"))
}
pub fn backward(
    _dy: &Tensor,
    _y: &Tensor,
    _lse: &Tensor,
    _qkv: &Tensor,
    _pad: &Tensor,
    _table: &Tensor,
    _p: Params,
) -> Result<Grads> {
    Err(engine::Error::invalid("kernel", "not written"))
}
