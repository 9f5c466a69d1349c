//! Saves the input, on the side that is to be followed.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::leaky_relu;

pub fn leaky_relu(tape: &Tape, x: &Var, slope: f64) -> Result<Var> {
    let _scope = trace::scope("leaky_relu");
    // the input is moved and not the output, whose sign says nothing where the slope is negative
    let side = tape.settle(x.value().clone(), |x| Ok(x.to_f64_vec()?))?;
    let y = leaky_relu::forward(&side, slope)?;
    tape.record(&[x], y, LeakyRelu { x: side, slope })
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
