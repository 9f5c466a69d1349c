//! Trilinear resize without antialiasing, PyTorch's `interpolate(mode="trilinear")`.
//!
//! Along each axis, output o of O samples the input of I at
//!   s = o · (I − 1) / (O − 1), or 0 for O = 1, with `align_corners`;
//!   s = max((o + ½) · I / O − ½, 0) without,
//! between i = ⌊s⌋ and min(i + 1, I − 1) with weights 1 − (s − i) and s − i; the three axes' weights multiply. Backward is the
//! exact transpose: dx[i] = Σ over the outputs that sampled i, weight · dy.
//!
//! `[N, D, H, W, C]` -> `[N, size…, C]`. No samples or channels give empty results; a zero-sized spatial axis is an error.

mod cpu;
mod cuda;

use engine::{Device, Error, Result, Tensor};

const OP: &str = "resize";

pub fn forward(x: &Tensor, size: [usize; 3], align_corners: bool) -> Result<Tensor> {
    let [n, d, h, w, c] = x.ndhwc(OP)?;
    check([d, h, w], size)?;
    match x.device() {
        Device::Cpu => cpu::forward(x, size, align_corners),
        Device::Cuda(_) => cuda::forward(x, size, align_corners),
        Device::Meta => x.new_empty(&[n, size[0], size[1], size[2], c]),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// dx, of the forward input's shape `x_dims`; the forward size is dy's.
pub fn backward(dy: &Tensor, x_dims: &[usize], align_corners: bool) -> Result<Tensor> {
    let [n, od, oh, ow, c] = dy.ndhwc(OP)?;
    match *x_dims {
        [xn, d, h, w, xc] if (xn, xc) == (n, c) => check([d, h, w], [od, oh, ow])?,
        _ => {
            return Err(Error::shape(OP, format!("x is {x_dims:?}, but dy {:?} needs [{n}, D, H, W, {c}]", dy.dims())));
        }
    }
    match dy.device() {
        Device::Cpu => cpu::backward(dy, x_dims, align_corners),
        Device::Cuda(_) => cuda::backward(dy, x_dims, align_corners),
        Device::Meta => dy.new_empty(x_dims),
        device => Err(Error::Unsupported { op: OP, dtype: dy.dtype(), device }),
    }
}

fn check(from: [usize; 3], to: [usize; 3]) -> Result<()> {
    if from.contains(&0) || to.contains(&0) {
        return Err(Error::shape(OP, format!("{from:?} to {to:?}: every spatial axis needs at least one voxel")));
    }
    Ok(())
}
