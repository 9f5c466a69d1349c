use super::scope::Scope;
use autograd::{Init, ParamId, Result, Tape, Var, ops};

/// ε of every normalisation in the network.
pub const NORM_EPS: f64 = 1e-5;

/// Layer norm over channels, with weight and bias.
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
}

impl LayerNorm {
    pub fn new(mut scope: Scope, channels: usize) -> Self {
        let weight = scope.term("weight", &[channels], Init::Ones);
        let bias = scope.term("bias", &[channels], Init::Zeros);
        LayerNorm { weight, bias }
    }

    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        ops::layer_norm(tape, x, Some((&tape.param(self.weight)?, &tape.param(self.bias)?)), NORM_EPS)
    }
}

/// Layer norm over channels, without parameters.
pub fn plain_layer_norm(tape: &Tape, x: &Var) -> Result<Var> {
    ops::layer_norm(tape, x, None, NORM_EPS)
}
