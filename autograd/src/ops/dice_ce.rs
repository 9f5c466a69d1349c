//! Saves the logits and the sums per sample and class.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::dice_ce;

/// logits `[N, D, H, W, C]`, labels i32 `[N, D, H, W]` -> scalar.
pub fn dice_ce(tape: &Tape, logits: &Var, labels: &Tensor) -> Result<Var> {
    let _scope = trace::scope("dice_ce");
    let out = dice_ce::forward(logits.value(), labels)?;
    let rule = DiceCe { logits: logits.value().clone(), labels: labels.clone(), sums: out.sums };
    tape.record(&[logits], out.loss, rule)
}

struct DiceCe {
    logits: Tensor,
    labels: Tensor,
    sums: Tensor,
}

impl Rule for DiceCe {
    fn name(&self) -> &'static str {
        "dice_ce"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(dice_ce::backward(&dy, &self.logits, &self.labels, &self.sums)?)])
    }
}
