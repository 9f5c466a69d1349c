//! LeakyReLU.
use engine::{Result, Tensor};

pub fn forward(_x: &Tensor, _slope: f64) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
pub fn backward(_dy: &Tensor, _x: &Tensor, _slope: f64) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
