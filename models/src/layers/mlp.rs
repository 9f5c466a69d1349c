use super::scope::{Scope, uniform};
use autograd::{ParamId, Result, Tape, Var, ops};

/// A weight and a bias.
type Layer = [ParamId; 2];

/// The perceptron of a transformer's block: two layers with GELU between them.
pub struct Mlp {
    linear1: Layer,
    linear2: Layer,
}

impl Mlp {
    pub fn new(mut scope: Scope, channels: usize, hidden: usize) -> Self {
        let mut layer = |name: &str, inputs: usize, outputs: usize| {
            let mut scope = scope.child(name);
            let weight = scope.operand("weight", &[outputs, inputs], uniform(inputs));
            [weight, scope.term("bias", &[outputs], uniform(inputs))]
        };
        Mlp { linear1: layer("linear1", channels, hidden), linear2: layer("linear2", hidden, channels) }
    }

    /// residual + linear2(gelu(linear1(x))).
    pub fn forward(&self, tape: &Tape, x: &Var, residual: &Var) -> Result<Var> {
        let params = |[weight, bias]: Layer| Ok::<_, autograd::Error>((tape.param(weight)?, tape.param(bias)?));
        let ((w1, b1), (w2, b2)) = (params(self.linear1)?, params(self.linear2)?);
        ops::mlp(tape, x, (&w1, &b1), (&w2, &b2), residual)
    }
}
