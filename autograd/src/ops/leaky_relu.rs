//! Saves the input.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::leaky_relu;

pub fn leaky_relu(tape: &Tape, x: &Var, slope: f64) -> Result<Var> {
    let _scope = trace::scope("leaky_relu");
    let y = leaky_relu::forward(x.value(), slope)?;
    let rule = LeakyRelu { x: x.value().clone(), slope };
    tape.record(&[x], y, rule)
}

struct LeakyRelu {
    x: Tensor,
    slope: f64,
}

impl Rule for LeakyRelu {
    fn name(&self) -> &'static str {
        "leaky_relu"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(leaky_relu::backward(&dy, &self.x, self.slope)?)])
    }
}
