//! Saves both inputs.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::cosine;

/// a `[N, D]`, b `[M, D]` -> `[N, M]`.
pub fn cosine(tape: &Tape, a: &Var, b: &Var) -> Result<Var> {
    let _scope = trace::scope("cosine");
    let y = cosine::forward(a.value(), b.value())?;
    tape.record(&[a, b], y, Cosine { a: a.value().clone(), b: b.value().clone() })
}

struct Cosine {
    a: Tensor,
    b: Tensor,
}

impl Rule for Cosine {
    fn name(&self) -> &'static str {
        "cosine"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let (da, db) = cosine::backward(&dy, &self.a, &self.b)?;
        Ok(vec![Some(da), Some(db)])
    }
}
