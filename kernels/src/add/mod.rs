//! Elementwise sums: `forward` is a + b, `accumulate` is a += b (`accumulate_at`: in a part of a), `scale` is factor · x. Any shape, both tensors alike; empty
//! tensors give empty results. All three move bytes and nothing else: two reads and a write per element (one read for `scale`).

mod cpu;
mod cuda;

use crate::check::{expect_device, expect_same};
use engine::{Device, Error, Result, Tensor};

const OP: &str = "add";

/// a + b. Errors when shapes or dtypes differ.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    expect_same(OP, ("a", a), ("b", b))?;
    match a.device() {
        Device::Cpu => cpu::forward(a, b),
        Device::Cuda(_) => cuda::forward(a, b),
        Device::Meta => a.new_empty(a.dims()),
        device => Err(Error::Unsupported { op: OP, dtype: a.dtype(), device }),
    }
}

/// a += b. Errors when shapes or dtypes differ, and when a's storage is shared.
pub fn accumulate(a: &mut Tensor, b: &Tensor) -> Result<()> {
    expect_same(OP, ("a", a), ("b", b))?;
    accumulate_at(a, 0, b)
}

/// Adds b to the elements of a from `start` on, row-major. Errors when b reaches past a's end, when dtypes differ, and when a's
/// storage is shared.
pub fn accumulate_at(a: &mut Tensor, start: usize, b: &Tensor) -> Result<()> {
    if start.checked_add(b.numel()).is_none_or(|end| end > a.numel()) {
        let detail = format!("{:?} does not fit into {:?} from element {start} on", b.dims(), a.dims());
        return Err(Error::shape(OP, detail));
    }
    if b.dtype() != a.dtype() {
        return Err(Error::DType { op: OP, got: b.dtype(), want: "one dtype for all inputs; convert with to_dtype" });
    }
    expect_device(OP, a, &[("b", b)])?;
    match a.device() {
        Device::Cpu => cpu::accumulate(a, start, b),
        Device::Cuda(_) => cuda::accumulate(a, start, b),
        Device::Meta => Ok(()),
        device => Err(Error::Unsupported { op: OP, dtype: a.dtype(), device }),
    }
}

/// x · factor, with the factor rounded first to the dtype of the arithmetic: x's, and f32 for bf16 and f16.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::scale(x, factor),
        Device::Cuda(_) => cuda::scale(x, factor),
        Device::Meta => x.new_empty(x.dims()),
        device => Err(Error::Unsupported { op: "scale", dtype: x.dtype(), device }),
    }
}
