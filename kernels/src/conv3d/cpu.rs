//! Convolution on the CPU: the products of [`crate::gemm`] with the weight read in place.

use crate::check::sum_dtype;
use crate::gemm::{Geometry, Map, Strides, multiply, weight_gradient};
use engine::{Result, Tensor};

/// One row per output pixel, summed over taps and input channels.
pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let [d, h, wide] = g.output;
    let (outputs, channels) = (w.dims()[0], w.channels());
    let mut y = Tensor::empty(&[g.batch, d, h, wide, outputs], x.dtype(), x.device())?;
    let strides = Strides { tap: channels, k: 1, n: w.numel() / outputs };
    multiply(op, &[Map::convolution(g)], x, (w, strides), bias, &mut y)?;
    Ok(y)
}

/// One row per input pixel, summed over taps and output channels. With a bias, `[Ci]`, this is a transposed convolution.
pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let [d, h, wide] = g.input;
    let (outputs, channels) = (w.dims()[0], w.channels());
    let mut dx = Tensor::empty(&[g.batch, d, h, wide, channels], dy.dtype(), dy.device())?;
    let strides = Strides { tap: channels, k: w.numel() / outputs, n: 1 };
    multiply(op, &Map::transposed(g), dy, (w, strides), bias, &mut dx)?;
    Ok(dx)
}

/// Summed over output pixels.
pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor, w_dims: &[usize], g: &Geometry) -> Result<Tensor> {
    let mut dw = Tensor::empty(w_dims, sum_dtype(x.dtype()), x.device())?;
    weight_gradient(op, &Map::convolution(g), dy, x, &mut dw)?;
    Ok(dw)
}
