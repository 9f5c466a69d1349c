//! Linear layer on a CUDA device: the convolution of a line of rows with one tap.

use super::with_channels;
use crate::gemm::{Geometry, cuda};
use engine::{Result, Tensor};

pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    cuda::fprop(op, x, w, bias, &Geometry::identity(x.rows()))?.reshape(&with_channels(x, w.dims()[0]))
}

pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    cuda::dgrad(op, dy, w, None, &Geometry::identity(dy.rows()))?.reshape(&with_channels(dy, w.channels()))
}

pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    cuda::wgrad(op, x, dy, &[dy.channels(), x.channels()], &Geometry::identity(x.rows()))
}
