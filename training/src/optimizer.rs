//! AdamW with amsgrad over a store's slab.

use crate::Result;
use autograd::{Gradients, ParamStore};
use engine::Tensor;
use kernels::adamw;

/// The hyper-parameters that stay the same for a run; the published recipe's by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// First moment, second moment and the largest second moment so far, laid out as the parameters.
pub struct AdamW {
    config: AdamWConfig,
    m: Tensor,
    v: Tensor,
    vmax: Tensor,
    steps: u64,
}

impl AdamW {
    pub fn new(params: &ParamStore, config: AdamWConfig) -> Result<Self> {
        Ok(AdamW { config, m: params.zeros_like()?, v: params.zeros_like()?, vmax: params.zeros_like()?, steps: 0 })
    }

    /// One update of every parameter with learning rate `lr`.
    pub fn step(&mut self, params: &mut ParamStore, grads: &Gradients, lr: f64) -> Result<()> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let p = adamw::Params { lr, beta1, beta2, eps, weight_decay, step: self.steps };
        let state = adamw::State { m: &mut self.m, v: &mut self.v, vmax: &mut self.vmax };
        Ok(adamw::update(params.slab_mut(), grads.slab(), state, p)?)
    }
}
