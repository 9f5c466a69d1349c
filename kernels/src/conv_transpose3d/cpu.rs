//! Transposed convolution on the CPU: the convolution of y with the roles of its input and output exchanged.

use crate::conv3d;
use crate::gemm::Geometry;
use engine::{Result, Tensor};

pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    conv3d::cpu::dgrad(op, x, w, bias, g)
}

pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor, g: &Geometry) -> Result<Tensor> {
    conv3d::cpu::fprop(op, dy, w, None, g)
}

pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor, w_dims: &[usize], g: &Geometry) -> Result<Tensor> {
    conv3d::cpu::wgrad(op, dy, x, w_dims, g)
}
