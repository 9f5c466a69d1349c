//! AdamW with amsgrad over a store's slab.

use crate::{Error, Result};
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
    /// Names of the state's tensors, in the order of [`AdamW::state`].
    pub const STATE: [&str; 3] = ["optimizer.m", "optimizer.v", "optimizer.vmax"];

    pub fn new(params: &ParamStore, config: AdamWConfig) -> Result<Self> {
        Ok(AdamW { config, m: params.zeros_like()?, v: params.zeros_like()?, vmax: params.zeros_like()?, steps: 0 })
    }

    /// Goes on after `steps` updates that left this state.
    pub fn resume(params: &ParamStore, config: AdamWConfig, state: [Tensor; 3], steps: u64) -> Result<Self> {
        let mut optimizer = AdamW { steps, ..AdamW::new(params, config)? };
        for (ours, given) in [&mut optimizer.m, &mut optimizer.v, &mut optimizer.vmax].into_iter().zip(state) {
            if given.dims() != ours.dims() {
                let (given, ours) = (given.dims(), ours.dims());
                return Err(Error::Config(format!("optimiser state of {given:?} for parameters of {ours:?}")));
            }
            *ours = given.to_device(params.device())?;
        }
        Ok(optimizer)
    }

    /// m, v and vmax.
    pub fn state(&self) -> [&Tensor; 3] {
        [&self.m, &self.v, &self.vmax]
    }

    /// Updates so far.
    pub fn steps(&self) -> u64 {
        self.steps
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
