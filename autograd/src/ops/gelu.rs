//! Saves the input.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::gelu;

pub fn gelu(tape: &Tape, x: &Var) -> Result<Var> {
    let _scope = trace::scope("gelu");
    let y = gelu::forward(x.value())?;
    let rule = Gelu { x: x.value().clone() };
    tape.record(&[x], y, rule)
}

struct Gelu {
    x: Tensor,
}

impl Rule for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(gelu::backward(&dy, &self.x)?)])
    }
}
