//! Elementwise sums: `forward` is a + b, `accumulate` is a += b, `scale` is factor · x. Any shape, both tensors alike; empty
//! tensors give empty results. All three move bytes and nothing else: two reads and a write per element (one read for `scale`).

mod cpu;

use crate::check::expect_same;
use engine::{Device, Error, Result, Tensor};

const OP: &str = "add";

/// a + b. Errors when shapes or dtypes differ.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    expect_same(OP, ("a", a), ("b", b))?;
    match a.device() {
        Device::Cpu => cpu::forward(a, b),
        device => Err(Error::Unsupported { op: OP, dtype: a.dtype(), device }),
    }
}

/// a += b. Errors when shapes or dtypes differ, and when a's storage is shared.
pub fn accumulate(a: &mut Tensor, b: &Tensor) -> Result<()> {
    expect_same(OP, ("a", a), ("b", b))?;
    match a.device() {
        Device::Cpu => cpu::accumulate(a, b),
        device => Err(Error::Unsupported { op: OP, dtype: a.dtype(), device }),
    }
}

/// x · factor, with the factor rounded to x's dtype first.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::scale(x, factor),
        device => Err(Error::Unsupported { op: "scale", dtype: x.dtype(), device }),
    }
}
