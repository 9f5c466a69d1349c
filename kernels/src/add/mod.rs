//! Elementwise sums: `forward` is a + b, `accumulate` is a += b, `scale` is factor · x. Any shape, both tensors alike; empty
//! tensors give empty results. All three move bytes and nothing else: two reads and a write per element (one read for `scale`).

pub(crate) mod cpu;
#[cfg(test)]
pub(crate) mod testing;

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

/// Errors unless both tensors, given with their names, have one shape and one dtype.
pub(crate) fn expect_same(op: &'static str, a: (&str, &Tensor), b: (&str, &Tensor)) -> Result<()> {
    if a.1.dtype() != b.1.dtype() {
        return Err(Error::DType { op, got: b.1.dtype(), want: "one dtype for all inputs; convert with to_dtype" });
    }
    expect_dims(op, b, a.1.dims(), a.0)
}

/// Errors unless the tensor, given with its name, has these sizes; `whose` says where they come from.
pub(crate) fn expect_dims(op: &'static str, t: (&str, &Tensor), want: &[usize], whose: &str) -> Result<()> {
    if t.1.dims() == want {
        return Ok(());
    }
    Err(Error::shape(op, format!("{} is {:?}, but {want:?} is needed to go with {whose}", t.0, t.1.dims())))
}
