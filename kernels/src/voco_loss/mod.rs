//! The three VoCo losses (contextual position prediction) from student and teacher projections.
//!
//! V volumes, each with S random crops and K base crops. `student` and `teacher` are `[V S + V K, dim]`: all crops, then all
//! bases, volume-major; `labels` `[V, S, K]` is the share, in [0, 1], of each crop that lies in each base. With
//! `r(x, q) = relu(cos(x, q))` (the cosine of [`crate::cosine`]), crops x, bases q, student s and teacher t, volume i and its
//! partner j = (i + 1) mod V:
//!
//! ```text
//! intra_i = ce(labels_i,        r(x_i^s, q_i^t))
//! inter_i = ce(r(x_i^t, q_j^t), r(x_i^s, q_j^s))
//! reg_i   = mean over a < b of r(q_ia^s, stop(q_ib^s))²
//!
//! ce(y, l) = -Σ y log(1 - |y - l| + ε) / (Σ y + ε)  -  Σ_{y = 0} log(1 - l + ε) / (#{y = 0} + ε)        ε = 1e-6
//! ```
//!
//! That is [`Form::Voco`]. The two earlier forms have no `inter`, which is 0, and another `intra`:
//!
//! ```text
//! Cvpr1   m(labels_i, r(x_i^s, q_i^t))                                w = 1
//! Cvpr3   m(labels_i, (r(x_i^s, q_i^t) + r(x_i^t, q_i^s)) / 2)        w = y
//!
//! m(y, l) = -Σ_{y > 0} w log(1 - |y - l| + ε) / (Σ_{y > 0} w + ε)  +  Σ_{y = 0} l² / (#{y = 0} + ε)
//! ```
//!
//! Both sums of `ce` and `m` run over all S K entries of a volume, and `y = 0` is exact equality. Each term is the mean over
//! volumes. Gradients go to the student alone: in `inter` to both factors of the prediction, in `Cvpr3` to one factor of each
//! cosine, in `reg` to the earlier base only. The ReLU's derivative is 0 at and below 0, that of |y - l| is 0 at equality. Wu,
//! Zhuang and Chen, "VoCo: a simple-yet-effective volume contrastive learning framework" and its large-scale sequel, as their
//! published code computes it; the earlier forms are those of its history.
//!
//! f32 or f64, one dtype throughout; everything is computed in f64. Errors: shapes or dtypes that do not fit, no volume, no
//! crop, fewer than two bases (no pair to regularise).

mod cpu;
mod cuda;

use crate::check::expect_device;
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "voco_loss";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub volumes: usize,
    pub crops: usize,
    pub bases: usize,
    pub form: Form,
}

/// How a position is scored, and which terms there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Voco,
    Cvpr1,
    Cvpr3,
}

/// terms `[3]`: intra, inter, reg (each the mean over volumes); logits `[V, S, K]`: the prediction that `intra` compares with the
/// labels.
pub struct Output {
    pub terms: Tensor,
    pub logits: Tensor,
}

/// student, teacher `[V*S + V*K, dim]` (all crops, then all bases, volume-major); labels `[V, S, K]`.
pub fn forward(student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<Output> {
    check(student, teacher, labels, p)?;
    match (student.device(), student.dtype()) {
        (Device::Cpu, DType::F32) => cpu::forward::<f32>(student, teacher, labels, p),
        (Device::Cpu, DType::F64) => cpu::forward::<f64>(student, teacher, labels, p),
        (Device::Cuda(_), DType::F32) => cuda::forward(student, teacher, labels, p),
        (Device::Meta, _) => Ok(Output { terms: student.new_empty(&[3])?, logits: student.new_empty(labels.dims())? }),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

/// dterms `[3]` -> gradient of student.
pub fn backward(dterms: &Tensor, student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<Tensor> {
    check(student, teacher, labels, p)?;
    if dterms.dims() != [3] {
        return Err(Error::shape(OP, format!("gradient {:?}; it must be [3]: intra, inter, reg", dterms.shape())));
    }
    alike(student, "the gradient", dterms)?;
    match (student.device(), student.dtype()) {
        (Device::Cpu, DType::F32) => cpu::backward::<f32>(dterms, student, teacher, labels, p),
        (Device::Cpu, DType::F64) => cpu::backward::<f64>(dterms, student, teacher, labels, p),
        (Device::Cuda(_), DType::F32) => cuda::backward(dterms, student, teacher, labels, p),
        (Device::Meta, _) => student.new_empty(student.dims()),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

fn check(student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<()> {
    let Params { volumes, crops, bases, .. } = p;
    if volumes == 0 || crops == 0 || bases < 2 {
        let detail = format!("{volumes} volumes, {crops} crops, {bases} bases; needs at least 1, 1 and 2");
        return Err(Error::invalid(OP, detail));
    }
    if labels.dims() != [volumes, crops, bases] {
        return Err(Error::shape(OP, format!("labels {:?}; expected [{volumes}, {crops}, {bases}]", labels.shape())));
    }
    let rows = volumes * (crops + bases); // no overflow: labels hold volumes * crops * bases elements
    if student.dims() != teacher.dims() || !matches!(student.dims(), [n, dim] if *n == rows && *dim > 0) {
        let (s, t) = (student.shape(), teacher.shape());
        let detail = format!(
            "student {s:?} and teacher {t:?} must both be [{rows}, dim]: \
             {volumes} volumes of {crops} crops and {bases} bases"
        );
        return Err(Error::shape(OP, detail));
    }
    alike(student, "the teacher", teacher)?;
    alike(student, "labels", labels)
}

/// Errors when the dtypes or the devices differ.
fn alike(student: &Tensor, name: &str, other: &Tensor) -> Result<()> {
    if other.dtype() == student.dtype() {
        return expect_device(OP, student, &[(name, other)]);
    }
    Err(Error::DType { op: OP, got: other.dtype(), want: "the student's dtype for teacher, labels and gradient" })
}

#[cfg(test)]
mod tests;
