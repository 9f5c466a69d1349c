use super::scope::{Scope, uniform};
use autograd::{ParamId, Result, Tape, Var, ops};

/// y = x wᵀ + b.
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    pub fn new(mut scope: Scope, inputs: usize, outputs: usize, bias: bool) -> Self {
        let weight = scope.operand("weight", &[outputs, inputs], uniform(inputs));
        let bias = bias.then(|| scope.term("bias", &[outputs], uniform(inputs)));
        Linear { weight, bias }
    }

    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let bias = self.bias(tape)?;
        ops::linear(tape, x, &tape.param(self.weight)?, bias.as_ref())
    }

    /// y = residual + x wᵀ + b.
    pub fn forward_add(&self, tape: &Tape, x: &Var, residual: &Var) -> Result<Var> {
        let bias = self.bias(tape)?;
        ops::linear_add(tape, x, &tape.param(self.weight)?, bias.as_ref(), residual)
    }

    pub fn bias(&self, tape: &Tape) -> Result<Option<Var>> {
        self.bias.map(|b| tape.param(b)).transpose()
    }
}
