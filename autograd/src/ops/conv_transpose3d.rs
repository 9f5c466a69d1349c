//! The transposes of conv3d's phases; dbias = sum of dy over all but channels.

use crate::ops::when;
use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::conv_transpose3d::{self, Params};
use kernels::sum_rows;

pub fn conv_transpose3d(tape: &Tape, x: &Var, w: &Var, bias: Option<&Var>, p: Params) -> Result<Var> {
    let _scope = trace::scope("conv_transpose3d");
    let y = conv_transpose3d::fprop(x.value(), w.value(), bias.map(Var::value), p)?;
    let rule = ConvTranspose3d { x: x.value().clone(), w: w.value().clone(), p };
    let inputs = [Some(x), Some(w), bias];
    tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule)
}

struct ConvTranspose3d {
    x: Tensor,
    w: Tensor,
    p: Params,
}

impl Rule for ConvTranspose3d {
    fn name(&self) -> &'static str {
        "conv_transpose3d"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let ConvTranspose3d { x, w, p } = *self;
        let dw = when(needs[1], || conv_transpose3d::wgrad(&x, &dy, w.dims(), p))?;
        let dx = when(needs[0], || conv_transpose3d::dgrad(&dy, &w, p))?;
        let dbias = when(needs.get(2) == Some(&true), || sum_rows::forward(&dy))?;
        Ok(vec![dx, dw, dbias])
    }
}
