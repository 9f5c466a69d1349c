//! Segmentation loss: mean soft Dice without the background, plus cross-entropy.
//!
//! Per voxel `p = softmax(logits)` over the C channels. With sums over the voxels of one sample, `I = Σ p_c [label = c]`,
//! `G = Σ [label = c]`, `P = Σ p_c`:
//!
//! ```text
//! loss = mean over samples and c >= 1 of (1 - (2 I + 1e-5) / (G + P + 1e-5))
//!      + mean over all voxels of (log Σ_c exp(logit_c) - logit_label)
//! ```
//!
//! as MONAI's `DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)`. A class that a sample lacks counts with
//! about 1 until its summed probability falls to the order of 1e-5. The gradient, with N samples, n voxels in all and
//! `h_c = ((2 I + 1e-5) / (G + P + 1e-5) - 2 [label = c]) / ((G + P + 1e-5) N (C - 1))`, h_0 = 0:
//!
//! ```text
//! dlogit_c = dloss ((p_c - [label = c]) / n + p_c (h_c - Σ_k p_k h_k))
//! ```
//!
//! logits `[N, ..., C]` f32 or f64, any number of spatial axes from one up; labels i32 `[N, ...]`. Sums run in f64 over chunks
//! of a fixed size. Errors: fewer than two classes, no voxels, a label outside 0..C (the error names it and its place).

mod cpu;
mod cuda;

use crate::check::expect_device;
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "dice_ce";

/// What backward needs besides the inputs: `sums` is `[N, C, 3]`, per sample and class I, G and P, in the dtype of the logits.
pub struct Output {
    pub loss: Tensor,
    pub sums: Tensor,
}

/// logits `[N, ..., C]`, labels i32 `[N, ...]` -> scalar.
pub fn forward(logits: &Tensor, labels: &Tensor) -> Result<Output> {
    check(logits, labels)?;
    match (logits.device(), logits.dtype()) {
        (Device::Cpu, DType::F32) => cpu::forward::<f32>(logits, labels),
        (Device::Cpu, DType::F64) => cpu::forward::<f64>(logits, labels),
        (Device::Cuda(_), DType::F32) => cuda::forward(logits, labels),
        (Device::Meta, _) => {
            let sums = logits.new_empty(&[logits.dims()[0], logits.channels(), 3])?;
            Ok(Output { loss: logits.new_empty(&[])?, sums })
        }
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

/// dloss (scalar) -> gradient of the logits.
pub fn backward(dloss: &Tensor, logits: &Tensor, labels: &Tensor, sums: &Tensor) -> Result<Tensor> {
    check(logits, labels)?;
    let expected = [logits.dims()[0], logits.channels(), 3];
    if sums.dims() != expected || dloss.numel() != 1 {
        let detail = format!("sums {:?} and gradient {:?}; expected {expected:?} and []", sums.shape(), dloss.shape());
        return Err(Error::shape(OP, detail));
    }
    for t in [sums, dloss] {
        if t.dtype() != logits.dtype() {
            return Err(Error::DType { op: OP, got: t.dtype(), want: "the logits' dtype for sums and gradient" });
        }
    }
    expect_device(OP, logits, &[("sums", sums), ("the gradient", dloss)])?;
    match (logits.device(), logits.dtype()) {
        (Device::Cpu, DType::F32) => cpu::backward::<f32>(dloss, logits, labels, sums),
        (Device::Cpu, DType::F64) => cpu::backward::<f64>(dloss, logits, labels, sums),
        (Device::Cuda(_), DType::F32) => cuda::backward(dloss, logits, labels, sums),
        (Device::Meta, _) => logits.new_empty(logits.dims()),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

fn check(logits: &Tensor, labels: &Tensor) -> Result<()> {
    let (outer, classes) = (logits.dims().len().saturating_sub(1), logits.channels());
    if outer < 2 || labels.dims() != &logits.dims()[..outer] {
        let detail = format!(
            "logits {:?} and labels {:?} must be [N, ..., C] and [N, ...] with at least one spatial axis",
            logits.shape(),
            labels.shape()
        );
        return Err(Error::shape(OP, detail));
    }
    if classes < 2 {
        let detail =
            format!("{classes} classes in logits {:?}; needs background and at least one more", logits.shape());
        return Err(Error::shape(OP, detail));
    }
    if labels.numel() == 0 {
        return Err(Error::shape(OP, format!("logits {:?} hold no voxels", logits.shape())));
    }
    if labels.dtype() != DType::I32 {
        return Err(Error::DType { op: OP, got: labels.dtype(), want: "i32 labels" });
    }
    expect_device(OP, logits, &[("labels", labels)])
}

/// The error of a label that is none of the classes, found at (sample, voxel).
fn no_class(label: i32, (sample, voxel): (usize, usize), classes: usize) -> Error {
    let detail =
        format!("label {label} at voxel {voxel} of sample {sample}; {classes} classes are 0 to {}", classes - 1);
    Error::invalid(OP, detail)
}

#[cfg(test)]
mod tests;
