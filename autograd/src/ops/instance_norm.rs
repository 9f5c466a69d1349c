//! Saves the input, the output (whose sign is the side of the LeakyReLU) and the statistics.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::Tensor;
use kernels::instance_norm::{self, Params};

/// act(norm(x) + residual).
pub fn instance_norm(tape: &Tape, x: &Var, residual: Option<&Var>, p: Params) -> Result<Var> {
    let out = instance_norm::forward(x.value(), residual.map(Var::value), p)?;
    let rule = InstanceNorm { x: x.value().clone(), y: out.y.clone(), mean: out.mean, rstd: out.rstd, p };
    let inputs = [Some(x), residual];
    Ok(tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), out.y, rule))
}

struct InstanceNorm {
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    p: Params,
}

impl Rule for InstanceNorm {
    fn name(&self) -> &'static str {
        "instance_norm"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let InstanceNorm { x, y, mean, rstd, p } = *self;
        let g = instance_norm::backward(&dy, &x, &y, &mean, &rstd, needs.len() == 2, p)?;
        Ok(vec![Some(g.dx), g.dresidual])
    }
}
