//! InfoNCE on cosine similarities, with soft targets, in independent groups.
use engine::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    pub temperature: f64,
    pub groups: usize,
}
pub struct Output {
    pub loss: Tensor,
    pub lse: Tensor,
}

/// q `[G*S, D]`, k `[G*K, D]`, targets `[G*S, K]` (rows sum to 1) -> scalar: mean over rows of -sum_j t_j log softmax_j.
pub fn forward(_q: &Tensor, _k: &Tensor, _targets: &Tensor, _p: Params) -> Result<Output> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// (dq, dk).
pub fn backward(
    _dloss: &Tensor,
    _q: &Tensor,
    _k: &Tensor,
    _targets: &Tensor,
    _lse: &Tensor,
    _p: Params,
) -> Result<(Tensor, Tensor)> {
    Err(engine::Error::invalid("kernel", "not written"))
}
