//! What operations ask of their inputs before they start.

use engine::trace::{self, Scope};
use engine::{DType, Device, Error, Result, Tensor, meta};

/// What statistics and sums over many values are kept in, which is the dtype of biases, of a norm's parameters and of all
/// parameters' gradients: f32 for bf16 and f16, else the same.
pub fn sum_dtype(dtype: DType) -> DType {
    if dtype.is_half() { DType::F32 } else { dtype }
}

/// A scope for an operation of so many multiplications, each with an addition, which the meta device's account gets too.
pub(crate) fn counted(op: &'static str, x: &Tensor, products: u128) -> Scope {
    if x.device() == Device::Meta {
        meta::count(2 * products);
    }
    trace::scope(op).counting(usize::try_from(2 * products).unwrap_or(usize::MAX))
}

/// The product of sizes; on the meta device more than a usize holds.
pub(crate) fn product(sizes: impl IntoIterator<Item = usize>) -> u128 {
    sizes.into_iter().map(|size| size as u128).product()
}

/// Errors unless the tensor, given with its name, has the dtype for sums over x, is on its device, and has these sizes.
pub(crate) fn expect_sums(op: &'static str, x: &Tensor, t: (&str, &Tensor), want: &[usize]) -> Result<()> {
    let dtype = sum_dtype(x.dtype());
    if t.1.dtype() != dtype {
        let (name, got) = (t.0, t.1.dtype());
        return Err(Error::invalid(op, format!("{name} is {got}, but with {} inputs it must be {dtype}", x.dtype())));
    }
    expect_device(op, x, &[t])?;
    expect_dims(op, t, want, &format!("x {:?}", x.dims()))
}

/// Errors unless both tensors, given with their names, have one shape and one dtype, and are on one device.
pub(crate) fn expect_same(op: &'static str, a: (&str, &Tensor), b: (&str, &Tensor)) -> Result<()> {
    if a.1.dtype() != b.1.dtype() {
        return Err(Error::DType { op, got: b.1.dtype(), want: "one dtype for all inputs; convert with to_dtype" });
    }
    expect_device(op, a.1, &[b])?;
    expect_dims(op, b, a.1.dims(), a.0)
}

/// Errors unless all tensors, given with their names, are on the device of `x`.
pub(crate) fn expect_device(op: &'static str, x: &Tensor, others: &[(&str, &Tensor)]) -> Result<()> {
    match others.iter().find(|(_, t)| t.device() != x.device()) {
        None => Ok(()),
        Some((name, t)) => {
            let (there, device) = (t.device(), x.device());
            Err(Error::invalid(
                op,
                format!("{name} is on {there}, and the other tensors are on {device}; copy it with to_device"),
            ))
        }
    }
}

/// Errors unless the tensor, given with its name, has these sizes; `whose` says where they come from.
pub(crate) fn expect_dims(op: &'static str, t: (&str, &Tensor), want: &[usize], whose: &str) -> Result<()> {
    if t.1.dims() == want {
        return Ok(());
    }
    Err(Error::shape(op, format!("{} is {:?}, but {want:?} is needed to go with {whose}", t.0, t.1.dims())))
}
