//! Linear layer on the CPU: a product whose row i meets source row i.

use super::with_channels;
use crate::check::sum_dtype;
use crate::gemm::{Map, Strides, multiply, weight_gradient};
use crate::{add, gelu};
use engine::{Result, Tensor};

pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut y = x.new_empty(&with_channels(x, w.dims()[0]))?;
    multiply(op, &[Map::identity(x.rows())], x, (w, Strides { tap: 0, k: 1, n: w.channels() }), bias, &mut y)?;
    Ok(y)
}

pub fn fprop_add(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
    let mut y = fprop(op, x, w, bias)?;
    add::accumulate(&mut y, residual)?;
    Ok(y)
}

pub fn fprop_gelu(
    op: &'static str,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    keep: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let before = fprop(op, x, w, bias)?;
    let after = gelu::forward(&before)?;
    Ok((keep.then_some(before), after))
}

pub fn dgrad_gelu(op: &'static str, dy: &Tensor, w: &Tensor, before: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut dx = dgrad(op, dy, w)?;
    let after = gelu::through(&mut dx, before)?;
    Ok((dx, after))
}

pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    let mut dx = dy.new_empty(&with_channels(dy, w.channels()))?;
    multiply(op, &[Map::identity(dy.rows())], dy, (w, Strides { tap: 0, k: w.channels(), n: 1 }), None, &mut dx)?;
    Ok(dx)
}

pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let mut dw = Tensor::empty(&[dy.channels(), x.channels()], sum_dtype(x.dtype()), x.device())?;
    weight_gradient(op, &Map::identity(x.rows()), dy, x, &mut dw)?;
    Ok(dw)
}
