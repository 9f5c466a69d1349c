//! 3D convolution, channels last.
use engine::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub stride: [usize; 3],
    pub padding: [usize; 3],
}

/// Output dims `[N, Do, Ho, Wo, Co]`.
pub fn output_dims(_x: &[usize], _w: &[usize], _p: Params) -> Result<[usize; 5]> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// x `[N, D, H, W, Ci]`, w `[Co, KD, KH, KW, Ci]`, bias `[Co]` -> `[N, Do, Ho, Wo, Co]`.
pub fn fprop(_x: &Tensor, _w: &Tensor, _bias: Option<&Tensor>, _p: Params) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// Gradient of x, whose dims are `x_dims`.
pub fn dgrad(_dy: &Tensor, _w: &Tensor, _x_dims: &[usize], _p: Params) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// Gradient of w, whose dims are `w_dims`.
pub fn wgrad(_x: &Tensor, _dy: &Tensor, _w_dims: &[usize], _p: Params) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
