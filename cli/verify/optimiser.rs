//! AdamW: the parameter after every step, at the learning rate of the warm-up cosine.

use super::case::Case;
use super::{Computed, Context};
use crate::{Error, Result};
use engine::Tensor;
use kernels::adamw::{self, Params, State};
use serde::Deserialize;
use training::schedule::warmup_cosine;

#[derive(Deserialize)]
struct Attrs {
    lr: f64,
    weight_decay: f64,
    betas: [f64; 2],
    eps: f64,
    amsgrad: bool,
    warmup_steps: u64,
    total_steps: u64,
}

pub fn adamw(case: &Case, context: &Context) -> Result<Computed> {
    let a: Attrs = case.attrs()?;
    if !a.amsgrad {
        return Err(Error::Message("AdamW without amsgrad: only with".into()));
    }
    // a copy of its own: the case's tensor stays as it is
    let start = case.float("in.param")?;
    let mut param = Tensor::from_slice(&start.to_f64_vec()?, start.dims())?.to_dtype(case.dtype)?;
    param = param.to_device(context.device)?;
    let grads = case.float("in.grads")?.to_device(context.device)?;
    if grads.dims().get(1..) != Some(param.dims()) {
        let detail = format!("in.grads {:?} is not [steps, ..] of in.param {:?}", grads.dims(), param.dims());
        return Err(Error::Message(detail));
    }
    let zeros = || Tensor::zeros(start.dims(), case.dtype, context.device);
    let (mut m, mut v, mut vmax) = (zeros()?, zeros()?, zeros()?);
    let (mut after, mut rates) = (Vec::new(), Vec::new());
    for step in 0..grads.dims()[0] {
        let lr = a.lr * warmup_cosine(step as u64, a.warmup_steps, a.total_steps);
        let grad = grads.rows_at(step, 1)?.reshape(start.dims())?;
        let state = State { m: &mut m, v: &mut v, vmax: &mut vmax };
        let [beta1, beta2] = a.betas;
        let (weight_decay, eps) = (a.weight_decay, a.eps);
        let p = Params { lr, beta1, beta2, eps, weight_decay, step: step as u64 + 1, scale: 1.0 };
        adamw::update(&mut param, None, &grad, state, p)?;
        after.extend(param.to_f64_vec()?);
        rates.push(lr);
    }
    let params = Tensor::from_slice(&after, grads.dims())?;
    Ok(Computed::from([("out.params".into(), params), ("out.lrs".into(), Tensor::from_slice(&rates, &[rates.len()])?)]))
}
