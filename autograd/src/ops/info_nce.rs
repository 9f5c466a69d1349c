//! Saves both sides and the log-sum-exp of each row; backward recomputes the similarities.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::info_nce::{self, Params};

/// q `[G*S, D]`, k `[G*K, D]`, targets `[G*S, K]` -> scalar.
pub fn info_nce(tape: &Tape, q: &Var, k: &Var, targets: &Tensor, p: Params) -> Result<Var> {
    let _scope = trace::scope("info_nce");
    let out = info_nce::forward(q.value(), k.value(), targets, p)?;
    let rule = InfoNce { q: q.value().clone(), k: k.value().clone(), targets: targets.clone(), lse: out.lse, p };
    tape.record(&[q, k], out.loss, rule)
}

struct InfoNce {
    q: Tensor,
    k: Tensor,
    targets: Tensor,
    lse: Tensor,
    p: Params,
}

impl Rule for InfoNce {
    fn name(&self) -> &'static str {
        "info_nce"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let InfoNce { q, k, targets, lse, p } = &*self;
        let (dq, dk) = info_nce::backward(&dy, q, k, targets, lse, *p, needs[1])?;
        Ok(vec![Some(dq), dk])
    }
}
