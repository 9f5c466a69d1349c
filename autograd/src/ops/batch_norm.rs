//! Saves the input and the batch's statistics.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::batch_norm;

/// x `[N, C]`, normalised over N.
pub fn batch_norm(tape: &Tape, x: &Var, eps: f64) -> Result<Var> {
    let _scope = trace::scope("batch_norm");
    let out = batch_norm::forward(x.value(), eps)?;
    let rule = BatchNorm { x: x.value().clone(), mean: out.mean, rstd: out.rstd };
    tape.record(&[x], out.y, rule)
}

struct BatchNorm {
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
}

impl Rule for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(batch_norm::backward(&dy, &self.x, &self.mean, &self.rstd)?)])
    }
}
