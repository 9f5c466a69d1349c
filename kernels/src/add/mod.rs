//! Elementwise sum.
use engine::{Result, Tensor};

pub fn forward(_a: &Tensor, _b: &Tensor) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// a += b; a's storage must be unshared.
pub fn accumulate(_a: &mut Tensor, _b: &Tensor) -> Result<()> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// x * factor.
pub fn scale(_x: &Tensor, _factor: f64) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
