//! Loops over the elements of whole tensors in fixed chunks, for sums and activations.

use crate::real::Real;
use engine::{Result, Tensor};
use rayon::prelude::*;

/// Elements that one task handles: small enough to share out, large enough to outweigh handing it over.
pub(crate) const CHUNK: usize = 1 << 15;

/// f of every element.
pub(crate) fn map<T: Real>(x: &Tensor, f: impl Fn(T) -> T + Sync) -> Result<Tensor> {
    let mut out = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let from = x.as_slice::<T>()?;
    out.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(out, x)| {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f(x);
        }
    });
    Ok(out)
}

/// f of every pair of elements; the caller has checked that the shapes agree.
pub(crate) fn zip<T: Real>(a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync) -> Result<Tensor> {
    let mut out = Tensor::empty(a.dims(), a.dtype(), a.device())?;
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let inputs = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    out.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (a, b))| {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = f(a, b);
        }
    });
    Ok(out)
}
