//! Transposed 3D convolution, channels last.
use engine::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub stride: [usize; 3],
}

/// x `[N, D, H, W, Ci]`, w `[Ci, KD, KH, KW, Co]`, bias `[Co]` -> `[N, (D-1)s+KD, .., Co]`.
pub fn fprop(_x: &Tensor, _w: &Tensor, _bias: Option<&Tensor>, _p: Params) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
pub fn dgrad(_dy: &Tensor, _w: &Tensor, _p: Params) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
pub fn wgrad(_x: &Tensor, _dy: &Tensor, _w_dims: &[usize], _p: Params) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
