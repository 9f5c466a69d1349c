//! dy is cut where the inputs met.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::concat;

pub fn concat(tape: &Tape, xs: &[&Var], axis: usize) -> Result<Var> {
    let _scope = trace::scope("concat");
    let y = concat::forward(&xs.iter().map(|x| x.value()).collect::<Vec<_>>(), axis)?;
    let sizes = xs.iter().map(|x| x.dims()[axis]).collect();
    tape.record(xs, y, Concat { axis, sizes })
}

struct Concat {
    axis: usize,
    sizes: Vec<usize>,
}

impl Rule for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(concat::split(&dy, self.axis, &self.sizes)?.into_iter().map(Some).collect())
    }
}
