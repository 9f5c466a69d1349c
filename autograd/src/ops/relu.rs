//! Saves the output: its sign is the input's.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::relu;

pub fn relu(tape: &Tape, x: &Var) -> Result<Var> {
    let _scope = trace::scope("relu");
    let y = tape.settle(relu::forward(x.value())?, |_| Ok(x.value().to_f64_vec()?))?;
    let rule = Relu { y: y.clone() };
    tape.record(&[x], y, rule)
}

struct Relu {
    y: Tensor,
}

impl Rule for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(relu::backward(&dy, &self.y)?)])
    }
}
