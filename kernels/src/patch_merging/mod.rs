//! Gathers the 2x2x2 neighbours of a voxel into channels: the data movement of Swin's patch merging.
//!
//! ```text
//! y[b, d, h, w, s C + c] = x[b, 2d + pd, 2h + ph, 2w + pw, c]    (pd, ph, pw) = parity of slot s = 0..8, see Order
//! ```
//!
//! A voxel past the end of an odd axis is zero. The transpose adds up the slots that hold the same voxel. An empty input gives an
//! empty output.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use engine::{DType, Device, Error, Result, Tensor, bf16};

const OP: &str = "patch_merging";

/// Which neighbour each of the eight slots holds. Weights of the orders have the same shapes and are not interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// MONAI's `merging` up to 1.4, and so the published VoCo weights: two neighbours are left out and two appear twice.
    #[default]
    Monai13,
    /// MONAI's `merging` from 1.5: every neighbour once, the single steps first.
    Monai15,
    /// MONAI's `mergingv2`, all versions: every neighbour once, w fastest.
    Standard,
}

impl Order {
    /// Parity (d, h, w) of each slot.
    fn parities(self) -> [[usize; 3]; 8] {
        match self {
            Order::Monai13 => [0, 4, 2, 1, 5, 2, 1, 7],
            Order::Monai15 => [0, 4, 2, 1, 6, 5, 3, 7],
            Order::Standard => [0, 1, 2, 3, 4, 5, 6, 7],
        }
        .map(|bits: usize| [bits >> 2, bits >> 1 & 1, bits & 1])
    }
}

/// `[B, D, H, W, C]` -> `[B, ceil(D/2), ceil(H/2), ceil(W/2), 8C]`.
pub fn gather(x: &Tensor, order: Order) -> Result<Tensor> {
    let dims = x.ndhwc(OP)?;
    if let Device::Cuda(_) = x.device() {
        return cuda::gather(x, dims, order);
    }
    let mut y = x.new_empty(&merged(dims))?;
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32) => cpu::gather::<f32>(dims, order, x.as_slice()?, y.as_mut_slice()?),
        (Device::Cpu, DType::BF16) => cpu::gather::<bf16>(dims, order, x.as_slice()?, y.as_mut_slice()?),
        (Device::Cpu, DType::F64) => cpu::gather::<f64>(dims, order, x.as_slice()?, y.as_mut_slice()?),
        (Device::Meta, _) => {}
        (device, dtype) => return Err(Error::Unsupported { op: OP, dtype, device }),
    }
    Ok(y)
}

/// The transpose of [`gather`]: dy of a gathered tensor -> dx of shape `x_dims`. Voxels that no slot holds get zero.
pub fn scatter(dy: &Tensor, x_dims: &[usize], order: Order) -> Result<Tensor> {
    let Ok(dims) = <[usize; 5]>::try_from(x_dims) else {
        return Err(Error::shape(OP, format!("expected dims [B, D, H, W, C] to scatter to, got {x_dims:?}")));
    };
    if dy.dims() != merged(dims) {
        let detail = format!("dy is {:?}; to scatter to {x_dims:?} it must be {:?}", dy.dims(), merged(dims));
        return Err(Error::shape(OP, detail));
    }
    if let Device::Cuda(_) = dy.device() {
        return cuda::scatter(dy, dims, order);
    }
    let mut dx = dy.new_empty(&dims)?;
    match (dy.device(), dy.dtype()) {
        (Device::Cpu, DType::F32) => cpu::scatter::<f32>(dims, order, dy.as_slice()?, dx.as_mut_slice()?),
        (Device::Cpu, DType::BF16) => cpu::scatter::<bf16>(dims, order, dy.as_slice()?, dx.as_mut_slice()?),
        (Device::Cpu, DType::F64) => cpu::scatter::<f64>(dims, order, dy.as_slice()?, dx.as_mut_slice()?),
        (Device::Meta, _) => {}
        (device, dtype) => return Err(Error::Unsupported { op: OP, dtype, device }),
    }
    Ok(dx)
}

/// Dims of the gathered tensor.
fn merged([b, d, h, w, c]: [usize; 5]) -> [usize; 5] {
    [b, d.div_ceil(2), h.div_ceil(2), w.div_ceil(2), c.saturating_mul(8)]
}
