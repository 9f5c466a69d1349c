//! The same rows are dropped from dy: the mask is drawn again from the seed.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::row_dropout;

/// Zeroes whole rows of `[N, C]` with probability p and scales the others by 1/(1-p); the seed is a tensor, as the kernel's.
pub fn row_dropout(tape: &Tape, x: &Var, p: f64, seed: &Tensor) -> Result<Var> {
    let _scope = trace::scope("row_dropout");
    let y = row_dropout::forward(x.value(), p, seed)?;
    tape.record(&[x], y, RowDropout { p, seed: seed.clone() })
}

struct RowDropout {
    p: f64,
    seed: Tensor,
}

impl Rule for RowDropout {
    fn name(&self) -> &'static str {
        "row_dropout"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(row_dropout::forward(&dy, self.p, &self.seed)?)])
    }
}
