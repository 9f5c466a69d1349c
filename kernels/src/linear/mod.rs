//! y = x wT + b over the last axis.
use engine::{Result, Tensor};

/// x `[.., in]`, w `[out, in]`, bias `[out]` -> `[.., out]`.
pub fn fprop(_x: &Tensor, _w: &Tensor, _bias: Option<&Tensor>) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// `[.., out]` -> `[.., in]`.
pub fn dgrad(_dy: &Tensor, _w: &Tensor) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// -> `[out, in]`.
pub fn wgrad(_x: &Tensor, _dy: &Tensor) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
