//! y = x wᵀ + b: dx = dy w, dw = dyᵀ x, db = sum of dy over rows.

use crate::ops::when;
use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::{linear, sum_rows};

/// x `[.., in]`, w `[out, in]`, bias `[out]` -> `[.., out]`.
pub fn linear(tape: &Tape, x: &Var, w: &Var, bias: Option<&Var>) -> Result<Var> {
    let _scope = trace::scope("linear");
    let y = linear::fprop(x.value(), w.value(), bias.map(Var::value))?;
    let rule = Linear { x: x.value().clone(), w: w.value().clone() };
    let inputs = [Some(x), Some(w), bias];
    Ok(tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule))
}

struct Linear {
    x: Tensor,
    w: Tensor,
}

impl Rule for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let Linear { x, w } = *self;
        let dw = when(needs[1], || linear::wgrad(&x, &dy))?;
        let dx = when(needs[0], || linear::dgrad(&dy, &w))?;
        let dbias = when(needs.get(2) == Some(&true), || sum_rows::forward(&dy))?;
        Ok(vec![dx, dw, dbias])
    }
}
