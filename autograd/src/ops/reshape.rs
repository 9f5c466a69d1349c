//! Views: the same elements under another shape, or some leading rows.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::Tensor;
use kernels::concat;

pub fn reshape(tape: &Tape, x: &Var, dims: &[usize]) -> Result<Var> {
    let y = x.value().reshape(dims)?;
    tape.record(&[x], y, Reshape { x_dims: x.dims().to_vec() })
}

struct Reshape {
    x_dims: Vec<usize>,
}

impl Rule for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(dy.reshape(&self.x_dims)?)])
    }
}

/// Rows `start..start + len` of the leading axis.
pub fn rows_at(tape: &Tape, x: &Var, start: usize, len: usize) -> Result<Var> {
    let y = x.value().rows_at(start, len)?;
    tape.record(&[x], y, RowsAt { x_dims: x.dims().to_vec(), start })
}

struct RowsAt {
    x_dims: Vec<usize>,
    start: usize,
}

impl Rule for RowsAt {
    fn name(&self) -> &'static str {
        "rows_at"
    }

    /// dy between rows of zeros.
    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let zeros = |rows: usize| {
            let dims: Vec<usize> = std::iter::once(rows).chain(self.x_dims[1..].iter().copied()).collect();
            Tensor::zeros(&dims, dy.dtype(), dy.device())
        };
        let after = self.x_dims[0] - self.start - dy.dims()[0];
        let mut pieces = vec![dy.clone()];
        if self.start > 0 {
            pieces.insert(0, zeros(self.start)?);
        }
        if after > 0 {
            pieces.push(zeros(after)?);
        }
        Ok(vec![Some(concat::forward(&pieces.iter().collect::<Vec<_>>(), 0)?)])
    }
}
