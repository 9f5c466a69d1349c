//! The three VoCo losses from student and teacher projections.
use engine::{Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub volumes: usize,
    pub crops: usize,
    pub bases: usize,
}
/// terms `[3]`: intra, inter, reg (each the mean over volumes); logits `[V, S, K]`: relu cos(student crop, teacher base).
pub struct Output {
    pub terms: Tensor,
    pub logits: Tensor,
}

/// student, teacher `[V*S + V*K, dim]` (all crops, then all bases, volume-major); labels `[V, S, K]`.
pub fn forward(_student: &Tensor, _teacher: &Tensor, _labels: &Tensor, _p: Params) -> Result<Output> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// dterms `[3]` -> gradient of student.
pub fn backward(
    _dterms: &Tensor,
    _student: &Tensor,
    _teacher: &Tensor,
    _labels: &Tensor,
    _p: Params,
) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
