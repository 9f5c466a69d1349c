//! Trilinear resize.
use engine::{Result, Tensor};

pub fn forward(_x: &Tensor, _size: [usize; 3], _align_corners: bool) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
pub fn backward(_dy: &Tensor, _x_dims: &[usize], _align_corners: bool) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
