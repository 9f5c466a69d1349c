//! Linear in x: backward is the transposed interpolation.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::resize;

/// Trilinear, `[N, D, H, W, C]` -> `[N, size.., C]`.
pub fn resize(tape: &Tape, x: &Var, size: [usize; 3], align_corners: bool) -> Result<Var> {
    let _scope = trace::scope("resize");
    let y = resize::forward(x.value(), size, align_corners)?;
    tape.record(&[x], y, Resize { x_dims: x.dims().to_vec(), align_corners })
}

struct Resize {
    x_dims: Vec<usize>,
    align_corners: bool,
}

impl Rule for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(resize::backward(&dy, &self.x_dims, self.align_corners)?)])
    }
}
