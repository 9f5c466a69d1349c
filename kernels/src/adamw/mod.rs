//! Fused AdamW with amsgrad.
use engine::{Result, Tensor};

/// step counts from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub step: u64,
}

pub struct State<'a> {
    pub m: &'a mut Tensor,
    pub v: &'a mut Tensor,
    pub vmax: &'a mut Tensor,
}

pub fn update(_param: &mut Tensor, _grad: &Tensor, _state: State<'_>, _p: Params) -> Result<()> {
    Err(engine::Error::invalid("kernel", "not written"))
}
