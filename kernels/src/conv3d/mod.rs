//! 3D convolution (cross-correlation, as in deep learning), channels last.
//!
//! With stride s, padding p (zeros) and kernel position k on each axis:
//!
//! ```text
//! y[n, o, c]  = bias[c] + sum over k, i of x[n, o * s + k - p, i] * w[c, k, i]        fprop
//! dx[n, q, i] = sum over k, c, o with o * s + k - p = q of dy[n, o, c] * w[c, k, i]   dgrad
//! dw[c, k, i] = sum over n, o of dy[n, o, c] * x[n, o * s + k - p, i]                 wgrad
//! Do = (D + 2 p - KD) / s + 1, rounded down; Ho and Wo alike
//! ```
//!
//! x is `[N, D, H, W, Ci]`, w `[Co, KD, KH, KW, Ci]`, y `[N, Do, Ho, Wo, Co]`. The bias' gradient is [`crate::sum_rows`] of dy.
//! f32 (on CUDA cores), bf16 with sums in f32 (on tensor cores; AVX512-BF16 where the CPU has it), on CUDA f16 likewise, and f64 on
//! the CPU. x, w and dy are of one dtype and give y and dx in it, rounded once; the bias and dw, which belong to f32 masters, are f32
//! in 16 bits too. Axes of size zero, and kernels larger than the padded input, are errors.

pub(crate) mod cpu;

use crate::check::{counted, sum_dtype};
use crate::gemm::{self, Geometry, MAX_STEP, check_bias, same_dtype};
use engine::{Device, Error, Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Input positions between neighbouring outputs along D, H, W; at least 1.
    pub stride: [usize; 3],
    /// Zeros on both sides along D, H, W.
    pub padding: [usize; 3],
}

/// Output dims `[N, Do, Ho, Wo, Co]` of x `[N, D, H, W, Ci]` and w `[Co, KD, KH, KW, Ci]`.
pub fn output_dims(x: &[usize], w: &[usize], p: Params) -> Result<[usize; 5]> {
    let g = geometry("conv3d", x, w, p)?;
    let [d, h, w_out] = g.output;
    Ok([g.batch, d, h, w_out, w[0]])
}

/// x `[N, D, H, W, Ci]`, w `[Co, KD, KH, KW, Ci]`, bias `[Co]` -> `[N, Do, Ho, Wo, Co]`.
pub fn fprop(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, p: Params) -> Result<Tensor> {
    const OP: &str = "conv3d fprop";
    let g = geometry(OP, x.dims(), w.dims(), p)?;
    same_dtype(OP, &[x, w])?;
    check_bias(OP, bias, w.dims()[0], x.dtype())?;
    let _scope = counted(OP, x, g.products(w.dims()));
    match x.device() {
        Device::Cpu => cpu::fprop(OP, x, w, bias, &g),
        Device::Cuda(_) => gemm::cuda::fprop(OP, x, w, bias, &g),
        Device::Meta => Tensor::empty(&output_dims(x.dims(), w.dims(), p)?, x.dtype(), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// Gradient of x, whose dims are `x_dims`: dy `[N, Do, Ho, Wo, Co]`, w `[Co, KD, KH, KW, Ci]` -> `[N, D, H, W, Ci]`.
pub fn dgrad(dy: &Tensor, w: &Tensor, x_dims: &[usize], p: Params) -> Result<Tensor> {
    const OP: &str = "conv3d dgrad";
    let g = geometry(OP, x_dims, w.dims(), p)?;
    check_dy(OP, dy, &g, w.dims()[0])?;
    same_dtype(OP, &[dy, w])?;
    let _scope = counted(OP, dy, g.products(w.dims()));
    match dy.device() {
        Device::Cpu => cpu::dgrad(OP, dy, w, None, &g),
        Device::Cuda(_) => gemm::cuda::dgrad(OP, dy, w, None, &g),
        Device::Meta => Tensor::empty(x_dims, dy.dtype(), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

/// Gradient of w, whose dims are `w_dims`: x `[N, D, H, W, Ci]`, dy `[N, Do, Ho, Wo, Co]` -> `[Co, KD, KH, KW, Ci]`.
pub fn wgrad(x: &Tensor, dy: &Tensor, w_dims: &[usize], p: Params) -> Result<Tensor> {
    const OP: &str = "conv3d wgrad";
    let g = geometry(OP, x.dims(), w_dims, p)?;
    check_dy(OP, dy, &g, w_dims[0])?;
    same_dtype(OP, &[x, dy])?;
    let _scope = counted(OP, x, g.products(w_dims));
    match x.device() {
        Device::Cpu => cpu::wgrad(OP, x, dy, w_dims, &g),
        Device::Cuda(_) => gemm::cuda::wgrad(OP, x, dy, w_dims, &g),
        Device::Meta => Tensor::empty(w_dims, sum_dtype(x.dtype()), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// The sizes of a convolution, or why x, w and p do not make one.
fn geometry(op: &'static str, x: &[usize], w: &[usize], p: Params) -> Result<Geometry> {
    let (&[batch, d, h, wide, channels], &[_, kd, kh, kw, weight_channels]) = (x, w) else {
        return Err(Error::shape(
            op,
            format!("expected x [N, D, H, W, Ci] and w [Co, KD, KH, KW, Ci], got {x:?}, {w:?}"),
        ));
    };
    if channels != weight_channels {
        return Err(Error::shape(op, format!("x {x:?} and w {w:?} differ in input channels, their last axes")));
    }
    if x.contains(&0) || w.contains(&0) {
        return Err(Error::shape(op, format!("x {x:?} or w {w:?} has an axis of size zero")));
    }
    if p.stride.iter().any(|s| !(1..=MAX_STEP).contains(s)) {
        return Err(Error::invalid(op, format!("stride {:?} must be from 1 to {MAX_STEP}", p.stride)));
    }
    if p.padding.iter().any(|&pad| pad > MAX_STEP) {
        return Err(Error::invalid(op, format!("padding {:?} must be at most {MAX_STEP}", p.padding)));
    }
    let (input, kernel) = ([d, h, wide], [kd, kh, kw]);
    let mut output = [0; 3];
    for a in 0..3 {
        let Some(room) = (input[a] + 2 * p.padding[a]).checked_sub(kernel[a]) else {
            return Err(Error::shape(
                op,
                format!(
                    "kernel {kernel:?} does not fit input {input:?} with padding {:?}: the output would be empty; \
                     use a larger input or more padding",
                    p.padding
                ),
            ));
        };
        output[a] = room / p.stride[a] + 1;
    }
    Ok(Geometry { batch, input, output, kernel, stride: p.stride, padding: p.padding })
}

fn check_dy(op: &'static str, dy: &Tensor, g: &Geometry, channels: usize) -> Result<()> {
    let [d, h, w] = g.output;
    let want = [g.batch, d, h, w, channels];
    if dy.dims() != want {
        return Err(Error::shape(op, format!("dy must have the output's dims {want:?}, got {:?}", dy.dims())));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
