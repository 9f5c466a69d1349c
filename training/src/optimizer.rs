//! AdamW with amsgrad over a store's slab.

use crate::{Error, LossScale, Result};
use autograd::{Gradients, ParamStore, precision};
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
    scaling: Option<LossScale>,
}

impl AdamW {
    /// Names of the state's tensors, in the order of [`AdamW::state`].
    pub const STATE: [&str; 3] = ["optimizer.m", "optimizer.v", "optimizer.vmax"];

    pub fn new(params: &ParamStore, config: AdamWConfig) -> Result<Self> {
        let scaling = precision::is_scaled(params.dtype()).then(LossScale::default);
        let [m, v, vmax] = [params.zeros_like()?, params.zeros_like()?, params.zeros_like()?];
        Ok(AdamW { config, m, v, vmax, steps: 0, scaling })
    }

    /// Goes on after `steps` steps that left this state.
    pub fn resume(
        params: &ParamStore,
        config: AdamWConfig,
        state: [Tensor; 3],
        steps: u64,
        scaling: Option<LossScale>,
    ) -> Result<Self> {
        let ours = params.slab().dims();
        if let Some(given) = state.iter().map(Tensor::dims).find(|&given| given != ours) {
            return Err(Error::Config(format!("optimiser state of {given:?} for parameters of {ours:?}")));
        }
        let [m, v, vmax] = state.map(|t| t.to_device(params.device()));
        Ok(AdamW { config, m: m?, v: v?, vmax: vmax?, steps, scaling })
    }

    /// m, v and vmax.
    pub fn state(&self) -> [&Tensor; 3] {
        [&self.m, &self.v, &self.vmax]
    }

    /// Steps so far, those that were left out among them.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How the loss is scaled, where it is.
    pub fn scaling(&self) -> Option<LossScale> {
        self.scaling
    }

    /// What the gradients of the next step must come multiplied by.
    pub fn loss_scale(&self) -> f64 {
        self.scaling.map_or(1.0, |scaling| scaling.scale)
    }

    /// One update of every parameter with learning rate `lr`.
    pub fn step(&mut self, params: &mut ParamStore, grads: &Gradients, lr: f64) -> Result<()> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let step = self.steps - self.scaling.map_or(0, |scaling| scaling.skipped);
        let p = adamw::Params { lr, beta1, beta2, eps, weight_decay, step, scale: self.loss_scale() };
        let state = adamw::State { m: &mut self.m, v: &mut self.v, vmax: &mut self.vmax };
        let (values, rounded) = params.slabs_mut();
        adamw::update(values, rounded, grads.slab(), state, p)?;
        if let Some(scaling) = &mut self.scaling {
            scaling.see(true);
        }
        Ok(())
    }

    /// As [`AdamW::step`] with gradients of this norm; but scaled ones that overflowed are left out.
    pub fn step_unless_overflowed(
        &mut self,
        params: &mut ParamStore,
        grads: &Gradients,
        norm: f64,
        lr: f64,
    ) -> Result<()> {
        match &mut self.scaling {
            Some(scaling) if !norm.is_finite() => {
                self.steps += 1;
                scaling.see(false);
                Ok(())
            }
            _ => self.step(params, grads, lr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use autograd::{Init, ParamStoreBuilder, Role, Tape};
    use engine::{DType, Device};

    const RATE: f64 = 0.1;

    /// A parameter, and its gradient where the loss is its sum times `scale`.
    struct Fixture {
        params: ParamStore,
        optimizer: AdamW,
    }

    impl Fixture {
        fn new(scaling: Option<LossScale>) -> Self {
            let mut builder = ParamStoreBuilder::default();
            builder.add("a", &[5], Role::Term, Init::Uniform(1.0));
            let params = builder.build(DType::F32, Device::Cpu, 1).expect("parameters");
            let optimizer = AdamW { scaling, ..AdamW::new(&params, AdamWConfig::default()).expect("optimiser") };
            Fixture { params, optimizer }
        }

        fn step(&mut self, gradient: f64, norm: f64) -> Vec<f32> {
            let gradient = gradient * self.optimizer.loss_scale();
            let a = self.params.find("a").expect("parameter");
            let tape = Tape::new(&self.params);
            let y = tape.param(a).expect("parameter");
            let cotangent = Tensor::full(&[5], gradient, DType::F32, Device::Cpu).expect("cotangent");
            let grads = tape.backward(&y, cotangent).expect("gradients");
            drop(y);
            self.optimizer.step_unless_overflowed(&mut self.params, &grads, norm, RATE).expect("step");
            self.params.slab().to_vec().expect("values")
        }
    }

    #[test]
    fn scaled_steps_give_the_bits_of_plain_ones_and_an_overflow_changes_nothing_but_the_scale() {
        let (mut plain, mut scaled) = (Fixture::new(None), Fixture::new(Some(LossScale::default())));
        assert_eq!((plain.optimizer.loss_scale(), scaled.optimizer.loss_scale()), (1.0, 65536.0));
        let first = scaled.step(0.5, 1.0);
        assert_eq!(first, plain.step(0.5, 1.0));
        assert_eq!(scaled.step(f64::INFINITY, f64::INFINITY), first);
        assert_eq!(scaled.step(f64::NAN, f64::NAN), first);
        assert_eq!((scaled.optimizer.loss_scale(), scaled.optimizer.steps()), (16384.0, 3));
        // Adam has seen one step
        assert_eq!(scaled.step(-0.25, 0.5), plain.step(-0.25, 0.5));
        assert_eq!((scaled.optimizer.steps(), plain.optimizer.steps()), (4, 2));
        assert!(plain.step(f64::NAN, f64::NAN).iter().any(|v| v.is_nan()));
    }

    #[test]
    fn only_what_needs_it_is_scaled() {
        for (dtype, scale) in [(DType::F32, 1.0), (DType::BF16, 1.0), (DType::F64, 1.0), (DType::F16, 65536.0)] {
            let params = ParamStore::none(dtype, Device::Cpu).expect("parameters");
            assert_eq!(AdamW::new(&params, AdamWConfig::default()).expect("optimiser").loss_scale(), scale, "{dtype}");
        }
    }
}
