//! Linear layer over the last axis.
//!
//! ```text
//! y[r, o]  = bias[o] + sum over i of x[r, i] * w[o, i]     fprop
//! dx[r, i] = sum over o of dy[r, o] * w[o, i]              dgrad
//! dw[o, i] = sum over r of dy[r, o] * x[r, i]              wgrad
//! ```
//!
//! A residual may be added to y, and GELU taken of it ([`fprop_add`], [`fprop_gelu`], [`dgrad_gelu`]): on a GPU before y is stored,
//! with the bits of the kernels of their own.
//!
//! x is `[.., in]` with rows r over all other axes, w `[out, in]`. The bias' gradient is [`crate::sum_rows`] of dy. Dtypes are
//! those of [`crate::conv3d`]. Axes of size zero are errors.

mod cpu;
mod cuda;

use crate::check::{counted, expect_device, product, sum_dtype};
use crate::gemm::{check_bias, same_dtype};
use engine::{Device, Error, Result, Tensor};

/// x `[.., in]`, w `[out, in]`, bias `[out]` -> `[.., out]`.
pub fn fprop(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear fprop";
    let outputs = check_fprop(OP, x, w, bias)?;
    let _scope = counted(OP, x, product([x.rows(), w.numel()]));
    match x.device() {
        Device::Cpu => cpu::fprop(OP, x, w, bias),
        Device::Cuda(_) => cuda::fprop(OP, x, w, bias),
        Device::Meta => Tensor::empty(&with_channels(x, outputs), x.dtype(), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// The same, plus a residual `[.., out]`, which is like y.
pub fn fprop_add(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
    const OP: &str = "linear fprop with add";
    let outputs = check_fprop(OP, x, w, bias)?;
    check_like(OP, ("the residual", residual), x, outputs)?;
    let _scope = counted(OP, x, product([x.rows(), w.numel()]));
    match x.device() {
        Device::Cpu => cpu::fprop_add(OP, x, w, bias, residual),
        Device::Cuda(_) => cuda::fprop_add(OP, x, w, bias, residual),
        Device::Meta => residual.new_empty(residual.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// y of [`fprop`], where it is to be kept, and gelu(y).
pub fn fprop_gelu(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, keep: bool) -> Result<(Option<Tensor>, Tensor)> {
    const OP: &str = "linear fprop with gelu";
    let outputs = check_fprop(OP, x, w, bias)?;
    let _scope = counted(OP, x, product([x.rows(), w.numel()]));
    match x.device() {
        Device::Cpu => cpu::fprop_gelu(OP, x, w, bias, keep),
        Device::Cuda(_) => cuda::fprop_gelu(OP, x, w, bias, keep),
        Device::Meta => {
            let empty = || x.new_empty(&with_channels(x, outputs));
            let y = empty()?;
            Ok((keep.then_some(y), empty()?))
        }
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// dy `[.., out]`, w `[out, in]` -> `[.., in]`.
pub fn dgrad(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    const OP: &str = "linear dgrad";
    let [outputs, inputs] = weight_dims(OP, w)?;
    check_last(OP, "dy", dy, outputs)?;
    same_dtype(OP, &[dy, w])?;
    let _scope = counted(OP, dy, product([dy.rows(), w.numel()]));
    match dy.device() {
        Device::Cpu => cpu::dgrad(OP, dy, w),
        Device::Cuda(_) => cuda::dgrad(OP, dy, w),
        Device::Meta => Tensor::empty(&with_channels(dy, inputs), dy.dtype(), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

/// Of z = gelu(y) that goes into a layer: [`dgrad`], the gradient of z, times gelu'(y), and z. y is `[.., in]`.
pub fn dgrad_gelu(dy: &Tensor, w: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "linear dgrad with gelu";
    let [outputs, inputs] = weight_dims(OP, w)?;
    check_last(OP, "dy", dy, outputs)?;
    same_dtype(OP, &[dy, w])?;
    check_like(OP, ("y", y), dy, inputs)?;
    let _scope = counted(OP, dy, product([dy.rows(), w.numel()]));
    match dy.device() {
        Device::Cpu => cpu::dgrad_gelu(OP, dy, w, y),
        Device::Cuda(_) => cuda::dgrad_gelu(OP, dy, w, y),
        Device::Meta => Ok((y.new_empty(y.dims())?, y.new_empty(y.dims())?)),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

/// x `[.., in]`, dy `[.., out]` -> `[out, in]`.
pub fn wgrad(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    const OP: &str = "linear wgrad";
    check_last(OP, "x", x, x.channels())?;
    check_last(OP, "dy", dy, dy.channels())?;
    if x.dims().split_last().map(|s| s.1) != dy.dims().split_last().map(|s| s.1) {
        let (x, dy) = (x.dims(), dy.dims());
        return Err(Error::shape(OP, format!("x {x:?} and dy {dy:?} must agree in all axes but the last")));
    }
    same_dtype(OP, &[x, dy])?;
    let _scope = counted(OP, x, product([x.numel(), dy.channels()]));
    match x.device() {
        Device::Cpu => cpu::wgrad(OP, x, dy),
        Device::Cuda(_) => cuda::wgrad(OP, x, dy),
        Device::Meta => Tensor::empty(&[dy.channels(), x.channels()], sum_dtype(x.dtype()), Device::Meta),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// How many outputs there are.
fn check_fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<usize> {
    let [outputs, inputs] = weight_dims(op, w)?;
    check_last(op, "x", x, inputs)?;
    same_dtype(op, &[x, w])?;
    check_bias(op, bias, outputs, x.dtype())?;
    Ok(outputs)
}

/// Errors unless `other` is like `t`, with `channels` for the last axis.
fn check_like(op: &'static str, (name, other): (&str, &Tensor), t: &Tensor, channels: usize) -> Result<()> {
    let want = with_channels(t, channels);
    if other.dims() != want {
        return Err(Error::shape(op, format!("{name} must be {want:?}, got {:?}", other.dims())));
    }
    same_dtype(op, &[t, other])?;
    expect_device(op, t, &[(name, other)])
}

/// `t`'s dims but for the last.
fn with_channels(t: &Tensor, channels: usize) -> Vec<usize> {
    let mut dims = t.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = channels;
    }
    dims
}

fn weight_dims(op: &'static str, w: &Tensor) -> Result<[usize; 2]> {
    match *w.dims() {
        [outputs, inputs] if outputs > 0 && inputs > 0 => Ok([outputs, inputs]),
        _ => Err(Error::shape(op, format!("expected w [out, in] without empty axes, got {:?}", w.dims()))),
    }
}

fn check_last(op: &'static str, name: &str, t: &Tensor, channels: usize) -> Result<()> {
    if t.rank() == 0 || t.channels() != channels || t.numel() == 0 {
        let dims = t.dims();
        return Err(Error::shape(op, format!("{name} must be [.., {channels}] without empty axes, got {dims:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
