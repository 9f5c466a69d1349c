//! AdamW with amsgrad: the whole update of one parameter in one pass.
//!
//! With `t = step`, counted from 1, and g the gradient over `scale`:
//!
//! ```text
//! x    <- x (1 - lr weight_decay)                        decoupled decay
//! m    <- beta1 m + (1 - beta1) g
//! v    <- beta2 v + (1 - beta2) g²
//! vmax <- max(vmax, v)                                   on the uncorrected v; NaN where that is
//! x    <- x - lr / (1 - beta1^t) · m / (sqrt(vmax) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! Loshchilov and Hutter, "Decoupled weight decay regularization", with the maximum of Reddi et al., "On the convergence of
//! Adam and beyond", in the order and with the corrections of `torch.optim.AdamW(amsgrad=True)`. The scalars are computed in
//! f64. All five tensors have one shape and one dtype, f32 or f64; on CUDA devices f32, of which the gradient may be bf16 or f16
//! instead. A low-precision copy of x, for products, is overwritten in the same pass. An empty parameter is left as it is.

mod cpu;
mod cuda;

use crate::cast;
use crate::check::{expect_device, expect_dims};
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "adamw";

/// `step` counts from 1; the gradient comes multiplied by `scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub step: u64,
    pub scale: f64,
}

/// The moving averages of the gradient and of its square, and the largest of the latter so far. All start at zero.
pub struct State<'a> {
    pub m: &'a mut Tensor,
    pub v: &'a mut Tensor,
    pub vmax: &'a mut Tensor,
}

/// Updates `param` and `state` in place, and overwrites `copy` with `param` rounded to the copy's dtype. Errors when shapes or
/// dtypes differ, when nothing casts to the copy's dtype, when `step` is 0, when a beta is outside [0, 1), when `scale` is not
/// positive, and when another tensor shares the storage of one that is written. What the copy does not allow is found before
/// anything is written.
pub fn update(param: &mut Tensor, copy: Option<&mut Tensor>, grad: &Tensor, state: State<'_>, p: Params) -> Result<()> {
    check(param, copy.as_deref(), grad, &state, p)?;
    match (param.device(), param.dtype()) {
        (Device::Cpu, DType::F32) => cpu::update::<f32>(param, grad, state, p)?,
        (Device::Cpu, DType::F64) => cpu::update::<f64>(param, grad, state, p)?,
        (Device::Cuda(_), DType::F32) => return cuda::update(param, copy, grad, state, p),
        (Device::Meta, _) => return Ok(()),
        (device, dtype) => return Err(Error::Unsupported { op: OP, dtype, device }),
    }
    copy.map_or(Ok(()), |copy| cast::into(param, copy))
}

fn check(param: &Tensor, copy: Option<&Tensor>, grad: &Tensor, state: &State<'_>, p: Params) -> Result<()> {
    for (name, t) in [("gradient", grad), ("m", &*state.m), ("v", &*state.v), ("vmax", &*state.vmax)] {
        if t.dims() != param.dims() {
            return Err(Error::shape(OP, format!("{name} is {:?}, the parameter {:?}", t.shape(), param.shape())));
        }
        let halved = name == "gradient" && t.dtype().is_half() && matches!(t.device(), Device::Cuda(_));
        if t.dtype() != param.dtype() && !halved {
            return Err(Error::DType { op: OP, got: t.dtype(), want: "the parameter's dtype for gradient and state" });
        }
        expect_device(OP, param, &[(name, t)])?;
    }
    if let Some(copy) = copy {
        expect_dims(OP, ("copy", copy), param.dims(), "the parameter")?;
        expect_device(OP, param, &[("copy", copy)])?;
        // what would fail after the parameter and its state were written
        cast::low(param.dtype(), copy.dtype(), param.device())?;
        if !copy.is_unshared() {
            return Err(Error::Shared { op: "write" });
        }
    }
    if p.step == 0 {
        return Err(Error::invalid(OP, "step 0: steps count from 1"));
    }
    if ![p.beta1, p.beta2].iter().all(|b| (0.0..1.0).contains(b)) {
        return Err(Error::invalid(OP, format!("betas {} and {} must lie in [0, 1)", p.beta1, p.beta2)));
    }
    if !(p.scale > 0.0 && p.scale.is_finite()) {
        return Err(Error::invalid(OP, format!("scale {} must be positive and finite", p.scale)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
