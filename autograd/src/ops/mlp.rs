//! The perceptron of a transformer's block, and the sum around it, with two layers: y = residual + gelu(x w₁ᵀ + b₁) w₂ᵀ + b₂.
//!
//! With h = x w₁ᵀ + b₁ and z = gelu(h): dz = dy w₂, dh = gelu'(h) · dz, dx = dh w₁, dw₁ = dhᵀ x, dw₂ = dyᵀ z, each bias' gradient the
//! sum over rows. Saves x and h, and computes z once more in backward: a tensor of the size of h less, for arithmetic that dh shares.

use crate::ops::when;
use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::{linear, sum_rows};

/// A layer's w `[out, in]` and bias `[out]`.
pub type Layer<'a> = (&'a Var, &'a Var);

/// x `[.., C]`, layers from C to H and from H to C', residual `[.., C']` -> `[.., C']`.
pub fn mlp(tape: &Tape, x: &Var, (w1, b1): Layer<'_>, (w2, b2): Layer<'_>, residual: &Var) -> Result<Var> {
    let _scope = trace::scope("mlp");
    let inputs = [x, w1, b1, w2, b2, residual];
    let keep = tape.keeps(&inputs);
    let (h, z) = linear::fprop_gelu(x.value(), w1.value(), Some(b1.value()), keep)?;
    let y = linear::fprop_add(&z, w2.value(), Some(b2.value()), residual.value())?;
    let Some(h) = h else { return Ok(tape.constant(y)) };
    let rule = Mlp { x: x.value().clone(), h, w1: w1.value().clone(), w2: w2.value().clone() };
    tape.record(&inputs, y, rule)
}

struct Mlp {
    x: Tensor,
    h: Tensor,
    w1: Tensor,
    w2: Tensor,
}

impl Rule for Mlp {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let Mlp { x, h, w1, w2 } = *self;
        let (dh, z) = linear::dgrad_gelu(&dy, &w2, &h)?;
        drop(h);
        let dw2 = when(needs[3], || linear::wgrad(&z, &dy))?;
        drop(z);
        let db2 = when(needs[4], || sum_rows::forward(&dy))?;
        let dw1 = when(needs[1], || linear::wgrad(&x, &dh))?;
        let db1 = when(needs[2], || sum_rows::forward(&dh))?;
        let dx = when(needs[0], || linear::dgrad(&dh, &w1))?;
        Ok(vec![dx, dw1, db1, dw2, db2, Some(dy)])
    }
}
