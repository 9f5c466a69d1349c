//! Convolution on the CPU: the products of [`crate::gemm`] with the weight read in place.
//!
//! Where each input pixel along W meets one output, as in the patch embedding, those that meet the same output are one pixel of more
//! channels ([`Geometry::fold`]): neither the input nor the weight changes in memory, and rows get longer.

use crate::check::sum_dtype;
use crate::gemm::{Geometry, Map, Strides, multiply, weight_gradient};
use engine::{DType, Result, Tensor};

/// One row per output pixel, summed over taps and input channels.
pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let [d, h, wide] = g.output;
    let (outputs, taps) = (w.dims()[0], w.numel() / w.dims()[0]);
    let mut y = Tensor::empty(&[g.batch, d, h, wide, outputs], x.dtype(), x.device())?;
    let (g, folded) = g.fold();
    let channels = folded * w.channels();
    let strides = Strides { tap: channels, k: 1, n: taps };
    multiply(op, &[Map::convolution(&g)], &input(x, &g, channels)?, (w, strides), bias, &mut y)?;
    Ok(y)
}

/// One row per input pixel, summed over taps and output channels. With a bias, `[Ci]`, this is a transposed convolution.
pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let [d, h, wide] = g.input;
    let dims = [g.batch, d, h, wide, w.channels()];
    let (g, folded) = g.fold();
    let channels = folded * w.channels();
    let bias = bias.map(|bias| repeat(bias, folded)).transpose()?;
    let strides = Strides { tap: channels, k: w.numel() / w.dims()[0], n: 1 };
    let mut dx = input(&Tensor::empty(&dims, dy.dtype(), dy.device())?, &g, channels)?;
    multiply(op, &Map::transposed(&g), dy, (w, strides), bias.as_ref(), &mut dx)?;
    dx.reshape(&dims)
}

/// Summed over output pixels.
pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor, w_dims: &[usize], g: &Geometry) -> Result<Tensor> {
    let mut dw = Tensor::empty(w_dims, sum_dtype(x.dtype()), x.device())?;
    let (g, folded) = g.fold();
    weight_gradient(op, &Map::convolution(&g), dy, &input(x, &g, folded * x.channels())?, &mut dw)?;
    Ok(dw)
}

/// A tensor of the input's elements with the dims of a folded input.
fn input(x: &Tensor, g: &Geometry, channels: usize) -> Result<Tensor> {
    let [d, h, wide] = g.input;
    x.reshape(&[g.batch, d, h, wide, channels])
}

/// A bias, f32 or f64, for each of the pixels that are one.
fn repeat(bias: &Tensor, times: usize) -> Result<Tensor> {
    let dims = [times * bias.numel()];
    match bias.dtype() {
        DType::F64 => Tensor::from_slice(&bias.as_slice::<f64>()?.repeat(times), &dims),
        _ => Tensor::from_slice(&bias.as_slice::<f32>()?.repeat(times), &dims),
    }
}
