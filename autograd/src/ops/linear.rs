//! y = x wᵀ + b: dx = dy w, dw = dyᵀ x, db = sum of dy over rows; with a residual r, y = r + x wᵀ + b and dr = dy.

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
    tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule)
}

/// The same, plus a residual `[.., out]`.
pub fn linear_add(tape: &Tape, x: &Var, w: &Var, bias: Option<&Var>, residual: &Var) -> Result<Var> {
    let _scope = trace::scope("linear_add");
    let y = linear::fprop_add(x.value(), w.value(), bias.map(Var::value), residual.value())?;
    let rule = LinearAdd(Linear { x: x.value().clone(), w: w.value().clone() });
    let inputs = [Some(residual), Some(x), Some(w), bias];
    tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule)
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

struct LinearAdd(Linear);

impl Rule for LinearAdd {
    fn name(&self) -> &'static str {
        "linear_add"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], pass: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let layer = Box::new(self.0).backward(dy.clone(), &needs[1..], pass)?;
        Ok([vec![Some(dy)], layer].concat())
    }
}
