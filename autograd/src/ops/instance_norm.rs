//! Saves the output and the statistics; the input too where the kernel cannot recover it from the output.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::instance_norm::{self, Params};

/// act(norm(x) + residual).
pub fn instance_norm(tape: &Tape, x: &Var, residual: Option<&Var>, p: Params) -> Result<Var> {
    let _scope = trace::scope("instance_norm");
    let out = instance_norm::forward(x.value(), residual.map(Var::value), p)?;
    let y = match p.slope {
        Some(slope) => tape.settle(out.y, |y| before(y, slope))?,
        None => out.y,
    };
    // Without a residual, backward inverts the LeakyReLU and never reads x: the convolution's output need not be kept.
    let invertible = residual.is_none() && p.slope.is_none_or(|s| s >= instance_norm::MIN_INVERTIBLE_SLOPE);
    let x_saved = if invertible { y.clone() } else { x.value().clone() };
    let rule = InstanceNorm { x: x_saved, y: y.clone(), mean: out.mean, rstd: out.rstd, p };
    let inputs = [Some(x), residual];
    tape.record(&inputs.into_iter().flatten().collect::<Vec<_>>(), y, rule)
}

/// The input of a LeakyReLU, from its output; of a ReLU, where it was positive.
fn before(y: &Tensor, slope: f64) -> Result<Vec<f64>> {
    let input = |y: f64| if y < 0.0 { y / slope } else { y };
    Ok(y.to_f64_vec()?.into_iter().map(input).collect())
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
