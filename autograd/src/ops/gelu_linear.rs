//! y = gelu(x) wᵀ + b. Saves x, and computes gelu(x) once more in backward: one pass of arithmetic in place of a tensor as large
//! as x. With h = gelu(x): dx = gelu'(x) · (dy w), dw = dyᵀ h, db = sum of dy over rows.

use crate::ops::when;
use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::{gelu, linear, sum_rows};

/// x `[.., in]`, w `[out, in]`, bias `[out]` -> `[.., out]`.
pub fn gelu_linear(tape: &Tape, x: &Var, w: &Var, bias: Option<&Var>) -> Result<Var> {
    let _scope = trace::scope("gelu_linear");
    let y = linear::fprop(&gelu::forward(x.value())?, w.value(), bias.map(Var::value))?;
    let rule = GeluLinear { x: x.value().clone(), w: w.value().clone() };
    let inputs = [Some(x), Some(w), bias];
    Ok(tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule))
}

struct GeluLinear {
    x: Tensor,
    w: Tensor,
}

impl Rule for GeluLinear {
    fn name(&self) -> &'static str {
        "gelu_linear"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let GeluLinear { x, w } = *self;
        let dw = when(needs[1], || linear::wgrad(&gelu::forward(&x)?, &dy))?;
        let dx = when(needs[0], || gelu::backward(&linear::dgrad(&dy, &w)?, &x))?;
        let dbias = when(needs.get(2) == Some(&true), || sum_rows::forward(&dy))?;
        Ok(vec![dx, dw, dbias])
    }
}
