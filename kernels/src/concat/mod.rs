//! Concatenation along one axis, and its transpose: cutting into pieces along it. Both only copy. Pieces may be empty; other
//! zero-sized axes give empty results.

mod cpu;
mod cuda;

use crate::check::expect_device;
use engine::{Device, Error, Result, Tensor};

const OP: &str = "concat";

/// Inputs `[…, Aᵢ, …]`, alike but for `axis`, become one tensor `[…, Σ Aᵢ, …]`. Errors without inputs, and when they differ
/// elsewhere than at `axis`.
pub fn forward(xs: &[&Tensor], axis: usize) -> Result<Tensor> {
    let Some(first) = xs.first() else {
        return Err(Error::invalid(OP, "needs at least one tensor"));
    };
    check_axis(first, axis)?;
    let mut dims = first.dims().to_vec();
    dims[axis] = 0;
    for x in xs {
        expect_device(OP, first, &[("an input", x)])?;
        if x.dtype() != first.dtype() {
            return Err(Error::DType {
                op: OP,
                got: x.dtype(),
                want: "one dtype for all inputs; convert with to_dtype",
            });
        }
        let alike = x.rank() == dims.len()
            && x.dims().iter().zip(first.dims()).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !alike {
            return Err(Error::shape(
                OP,
                format!("{:?} and {:?} may differ only at axis {axis}", first.dims(), x.dims()),
            ));
        }
        let joined = dims[axis].checked_add(x.dims()[axis]);
        dims[axis] =
            joined.ok_or_else(|| Error::shape(OP, format!("axis {axis} of all inputs together is too long")))?;
    }
    match first.device() {
        Device::Cpu => cpu::forward(xs, axis, &dims),
        Device::Cuda(_) => cuda::forward(xs, axis, &dims),
        Device::Meta => first.new_empty(&dims),
        device => Err(Error::Unsupported { op: OP, dtype: first.dtype(), device }),
    }
}

/// The transpose: cuts dy into pieces of these sizes along the axis. Errors when the sizes do not add up to it.
pub fn split(dy: &Tensor, axis: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
    check_axis(dy, axis)?;
    let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    if total != Some(dy.dims()[axis]) {
        return Err(Error::shape(OP, format!("sizes {sizes:?} do not add up to axis {axis} of {:?}", dy.dims())));
    }
    match dy.device() {
        Device::Cpu => cpu::split(dy, axis, sizes),
        Device::Cuda(_) => cuda::split(dy, axis, sizes),
        Device::Meta => sizes.iter().map(|&size| dy.new_empty(&piece_dims(dy, axis, size))).collect(),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

/// Dims of a piece of this size along the axis.
fn piece_dims(dy: &Tensor, axis: usize, size: usize) -> Vec<usize> {
    let mut dims = dy.dims().to_vec();
    dims[axis] = size;
    dims
}

fn check_axis(x: &Tensor, axis: usize) -> Result<()> {
    if axis >= x.rank() {
        return Err(Error::shape(OP, format!("{:?} has no axis {axis}", x.dims())));
    }
    Ok(())
}
