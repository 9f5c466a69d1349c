//! Instance norm without affine, fused with a residual add and LeakyReLU: y = act(norm(x) + residual).
use engine::{Result, Tensor};

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

pub fn forward(_x: &Tensor, _residual: Option<&Tensor>, _p: Params) -> Result<Output> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// y gives the side of the LeakyReLU. dresidual is Some when `has_residual`.
pub fn backward(
    _dy: &Tensor,
    _x: &Tensor,
    _y: &Tensor,
    _mean: &Tensor,
    _rstd: &Tensor,
    _has_residual: bool,
    _p: Params,
) -> Result<Grads> {
    Err(engine::Error::invalid("kernel", "not written"))
}
