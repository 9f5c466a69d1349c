use crate::layers::{Linear, NORM_EPS, Scope};
use autograd::{ParamStoreBuilder, Result, Tape, Var, ops, precision};
use engine::trace;

/// Linear – BN – ReLU – Linear – BN – ReLU – Linear, with batch norm on batch statistics and no parameters of its own.
pub struct Projector {
    name: String,
    layer1: Linear,
    layer2: Linear,
    layer3: Linear,
}

impl Projector {
    pub fn new(builder: &mut ParamStoreBuilder, prefix: &str, inputs: usize, hidden: usize, out: usize) -> Self {
        let mut scope = Scope::new(builder, prefix);
        let mut layer = |name: &str, i, o| Linear::new(scope.child(name).child("0"), i, o, true);
        Projector {
            name: format!("{prefix}projector"),
            layer1: layer("layer1", inputs, hidden),
            layer2: layer("layer2", hidden, hidden),
            layer3: layer("layer3", hidden, out),
        }
    }

    /// `[N, inputs]` -> `[N, out]`.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let _scope = trace::scope(&self.name);
        let mut x = precision::enter(tape, x)?;
        for layer in [&self.layer1, &self.layer2] {
            let y = ops::batch_norm(tape, &layer.forward(tape, &x)?, NORM_EPS)?;
            x = ops::relu(tape, &y)?;
        }
        precision::leave(tape, &self.layer3.forward(tape, &x)?)
    }
}
