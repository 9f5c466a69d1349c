//! A gather; backward scatters.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::patch_merging::{self, Order};

/// `[B, D, H, W, C]` -> `[B, ceil(D/2), ceil(H/2), ceil(W/2), 8C]`.
pub fn patch_merging(tape: &Tape, x: &Var, order: Order) -> Result<Var> {
    let _scope = trace::scope("patch_merging");
    let y = patch_merging::gather(x.value(), order)?;
    tape.record(&[x], y, PatchMerging { x_dims: x.dims().to_vec(), order })
}

struct PatchMerging {
    x_dims: Vec<usize>,
    order: Order,
}

impl Rule for PatchMerging {
    fn name(&self) -> &'static str {
        "patch_merging"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(patch_merging::scatter(&dy, &self.x_dims, self.order)?)])
    }
}
