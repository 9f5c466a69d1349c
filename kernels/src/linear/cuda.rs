//! Linear layer on a CUDA device: the convolution of a line of rows with one tap.

use super::with_channels;
use crate::gemm::{Geometry, cuda};
use engine::{Result, Tensor};

pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    cuda::fprop(op, x, w, bias, &Geometry::identity(x.rows()))?.reshape(&with_channels(x, w.dims()[0]))
}

pub fn fprop_add(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
    cuda::fprop_add(op, x, w, bias, residual, &Geometry::identity(x.rows()))?.reshape(residual.dims())
}

pub fn fprop_gelu(
    op: &'static str,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    keep: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let dims = with_channels(x, w.dims()[0]);
    let (before, after) = cuda::fprop_gelu(op, x, w, bias, keep, &Geometry::identity(x.rows()))?;
    Ok((before.map(|t| t.reshape(&dims)).transpose()?, after.reshape(&dims)?))
}

pub fn dgrad_gelu(op: &'static str, dy: &Tensor, w: &Tensor, before: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dx, after) = cuda::dgrad_gelu(op, dy, w, before, &Geometry::identity(dy.rows()))?;
    Ok((dx.reshape(before.dims())?, after.reshape(before.dims())?))
}

pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    cuda::dgrad(op, dy, w, None, &Geometry::identity(dy.rows()))?.reshape(&with_channels(dy, w.channels()))
}

pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    cuda::wgrad(op, x, dy, &[dy.channels(), x.channels()], &Geometry::identity(x.rows()))
}
