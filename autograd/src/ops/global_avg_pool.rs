//! dy is spread evenly over space.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::global_avg_pool;

/// `[N, D, H, W, C]` -> `[N, C]`.
pub fn global_avg_pool(tape: &Tape, x: &Var) -> Result<Var> {
    let _scope = trace::scope("global_avg_pool");
    let y = global_avg_pool::forward(x.value())?;
    tape.record(&[x], y, GlobalAvgPool { x_dims: x.dims().to_vec() })
}

struct GlobalAvgPool {
    x_dims: Vec<usize>,
}

impl Rule for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(global_avg_pool::backward(&dy, &self.x_dims)?)])
    }
}
