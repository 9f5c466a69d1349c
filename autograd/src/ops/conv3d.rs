//! dx = dgrad(dy, w), dw = wgrad(x, dy), dbias = sum of dy over all but channels.

use crate::ops::when;
use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::conv3d::{self, Params};
use kernels::sum_rows;

pub fn conv3d(tape: &Tape, x: &Var, w: &Var, bias: Option<&Var>, p: Params) -> Result<Var> {
    let _scope = trace::scope("conv3d");
    let y = conv3d::fprop(x.value(), w.value(), bias.map(Var::value), p)?;
    let rule = Conv3d { x: x.value().clone(), w: w.value().clone(), p };
    let inputs = [Some(x), Some(w), bias];
    tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule)
}

struct Conv3d {
    x: Tensor,
    w: Tensor,
    p: Params,
}

impl Rule for Conv3d {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let Conv3d { x, w, p } = *self;
        let dw = when(needs[1], || conv3d::wgrad(&x, &dy, w.dims(), p))?;
        let dx = when(needs[0], || conv3d::dgrad(&dy, &w, x.dims(), p))?;
        let dbias = when(needs.get(2) == Some(&true), || sum_rows::forward(&dy))?;
        Ok(vec![dx, dw, dbias])
    }
}
