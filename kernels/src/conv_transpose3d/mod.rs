//! Transposed 3D convolution, channels last: the gradient of a convolution's input, as a layer.
//!
//! With stride s and kernel position k on each axis:
//!
//! ```text
//! y[n, q, c]  = bias[c] + sum over k, i, o with o * s + k = q of x[n, o, i] * w[i, k, c]   fprop
//! dx[n, o, i] = sum over k, c of dy[n, o * s + k, c] * w[i, k, c]                          dgrad
//! dw[i, k, c] = sum over n, o of x[n, o, i] * dy[n, o * s + k, c]                          wgrad
//! ```
//!
//! x is `[N, D, H, W, Ci]`, w `[Ci, KD, KH, KW, Co]` (the weight of the convolution Co -> Ci that this transposes) and y
//! `[N, (D - 1) s + KD, (H - 1) s + KH, (W - 1) s + KW, Co]`. Where s > K, the pixels between are the bias alone. The bias'
//! gradient is [`crate::sum_rows`] of dy. Dtypes are those of [`crate::conv3d`]. Axes of size zero are errors.

mod cpu;

use crate::check::{counted, sum_dtype};
use crate::gemm::{self, Geometry, MAX_STEP, check_bias, same_dtype};
use engine::{Device, Error, Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Output positions between neighbouring inputs along D, H, W; at least 1.
    pub stride: [usize; 3],
}

/// x `[N, D, H, W, Ci]`, w `[Ci, KD, KH, KW, Co]`, bias `[Co]` -> `[N, (D-1)s+KD, .., Co]`.
pub fn fprop(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, p: Params) -> Result<Tensor> {
    const OP: &str = "conv_transpose3d fprop";
    let g = geometry(OP, x.dims(), w.dims(), p)?;
    same_dtype(OP, &[x, w])?;
    check_bias(OP, bias, w.channels(), x.dtype())?;
    let _scope = counted(OP, x, g.products(w.dims()));
    match x.device() {
        Device::Cpu => cpu::fprop(OP, x, w, bias, &g),
        Device::Cuda(_) => gemm::cuda::dgrad(OP, x, w, bias, &g),
        Device::Meta => Tensor::empty(&output_dims(&g, w.channels()), x.dtype(), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// Gradient of x: dy `[N, (D-1)s+KD, .., Co]`, w `[Ci, KD, KH, KW, Co]` -> `[N, D, H, W, Ci]`.
pub fn dgrad(dy: &Tensor, w: &Tensor, p: Params) -> Result<Tensor> {
    const OP: &str = "conv_transpose3d dgrad";
    let x_dims = input_dims(OP, dy, w.dims(), p)?;
    let g = geometry(OP, &x_dims, w.dims(), p)?;
    check_dy(OP, dy, &x_dims, w.dims(), &g)?;
    same_dtype(OP, &[dy, w])?;
    let _scope = counted(OP, dy, g.products(w.dims()));
    match dy.device() {
        Device::Cpu => cpu::dgrad(OP, dy, w, &g),
        Device::Cuda(_) => gemm::cuda::fprop(OP, dy, w, None, &g),
        Device::Meta => Tensor::empty(&x_dims, dy.dtype(), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

/// Gradient of w, whose dims are `w_dims`: x `[N, D, H, W, Ci]`, dy `[N, (D-1)s+KD, .., Co]` -> `[Ci, KD, KH, KW, Co]`.
pub fn wgrad(x: &Tensor, dy: &Tensor, w_dims: &[usize], p: Params) -> Result<Tensor> {
    const OP: &str = "conv_transpose3d wgrad";
    let g = geometry(OP, x.dims(), w_dims, p)?;
    check_dy(OP, dy, x.dims(), w_dims, &g)?;
    same_dtype(OP, &[x, dy])?;
    let _scope = counted(OP, x, g.products(w_dims));
    match x.device() {
        Device::Cpu => cpu::wgrad(OP, x, dy, w_dims, &g),
        Device::Cuda(_) => gemm::cuda::wgrad(OP, dy, x, w_dims, &g),
        Device::Meta => Tensor::empty(w_dims, sum_dtype(x.dtype()), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// The sizes of the convolution y -> x that is transposed, or why x, w and p do not make one.
fn geometry(op: &'static str, x: &[usize], w: &[usize], p: Params) -> Result<Geometry> {
    let (&[batch, d, h, wide, channels], &[weight_channels, kd, kh, kw, _]) = (x, w) else {
        return Err(Error::shape(
            op,
            format!("expected x [N, D, H, W, Ci] and w [Ci, KD, KH, KW, Co], got {x:?}, {w:?}"),
        ));
    };
    if channels != weight_channels {
        return Err(Error::shape(
            op,
            format!("x {x:?} and w {w:?} differ in input channels, x's last axis and w's first"),
        ));
    }
    if x.contains(&0) || w.contains(&0) {
        return Err(Error::shape(op, format!("x {x:?} or w {w:?} has an axis of size zero")));
    }
    if p.stride.iter().any(|s| !(1..=MAX_STEP).contains(s)) {
        return Err(Error::invalid(op, format!("stride {:?} must be from 1 to {MAX_STEP}", p.stride)));
    }
    let (output, kernel) = ([d, h, wide], [kd, kh, kw]);
    let mut input = [0; 3];
    for a in 0..3 {
        let size = (output[a] - 1).checked_mul(p.stride[a]).and_then(|s| s.checked_add(kernel[a]));
        input[a] = size.ok_or_else(|| Error::invalid(op, format!("stride {:?} is too large for x {x:?}", p.stride)))?;
    }
    Ok(Geometry { batch, input, output, kernel, stride: p.stride, padding: [0; 3] })
}

/// Dims of x from those of its output's gradient.
fn input_dims(op: &'static str, dy: &Tensor, w: &[usize], p: Params) -> Result<[usize; 5]> {
    let ([n, size @ .., _], &[channels, kd, kh, kw, _]) = (dy.ndhwc(op)?, w) else {
        return Err(Error::shape(op, format!("expected w [Ci, KD, KH, KW, Co], got {w:?}")));
    };
    let kernel = [kd, kh, kw];
    let mut dims = [n, 0, 0, 0, channels];
    for a in 0..3 {
        let steps = size[a].checked_sub(kernel[a]).and_then(|room| room.checked_div(p.stride[a]));
        dims[a + 1] = 1 + steps.ok_or_else(|| {
            let stride = p.stride;
            Error::shape(op, format!("dy {:?} is no output of kernel {kernel:?} with stride {stride:?}", dy.dims()))
        })?;
    }
    Ok(dims)
}

fn output_dims(g: &Geometry, channels: usize) -> [usize; 5] {
    let [d, h, w] = g.input;
    [g.batch, d, h, w, channels]
}

fn check_dy(op: &'static str, dy: &Tensor, x: &[usize], w: &[usize], g: &Geometry) -> Result<()> {
    let want = output_dims(g, w[4]);
    if dy.dims() != want {
        return Err(Error::shape(op, format!("dy for x {x:?} and w {w:?} must be {want:?}, got {:?}", dy.dims())));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
