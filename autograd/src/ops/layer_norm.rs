//! Saves the input and the statistics of each row.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::layer_norm;

/// affine = (weight `[C]`, bias `[C]`).
pub fn layer_norm(tape: &Tape, x: &Var, affine: Option<(&Var, &Var)>, eps: f64) -> Result<Var> {
    let _scope = trace::scope("layer_norm");
    let out = layer_norm::forward(x.value(), affine.map(|(w, b)| (w.value(), b.value())), eps)?;
    let weight = affine.map(|(w, _)| w.value().clone());
    let rule = LayerNorm { x: x.value().clone(), weight, mean: out.mean, rstd: out.rstd };
    let mut inputs = vec![x];
    inputs.extend(affine.into_iter().flat_map(|(w, b)| [w, b]));
    tape.record(&inputs, out.y, rule)
}

struct LayerNorm {
    x: Tensor,
    weight: Option<Tensor>,
    mean: Tensor,
    rstd: Tensor,
}

impl Rule for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let g = layer_norm::backward(&dy, &self.x, self.weight.as_ref(), &self.mean, &self.rstd)?;
        Ok(vec![Some(g.dx), g.dweight, g.dbias])
    }
}
