//! Loops over the elements of whole tensors in fixed chunks, for sums and activations.

use crate::real::Stored;
use crate::simd::{self, Kernel, Vector};
use engine::{Result, Tensor, parallel};

/// Elements that one task handles: small enough to share out, large enough to outweigh handing it over.
pub(crate) const CHUNK: usize = 1 << 15;

/// f of every element.
pub(crate) fn map<S: Stored>(x: &Tensor, f: impl Fn(S::Real) -> S::Real + Copy + Send + Sync) -> Result<Tensor> {
    let mut out = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let from = x.as_slice::<S>()?;
    let tasks = out.as_mut_slice::<S>()?.chunks_mut(CHUNK).zip(from.chunks(CHUNK));
    parallel::each(tasks, |(out, x)| simd::dispatch(Map { x, out, f }));
    Ok(out)
}

/// f of every pair of elements; the caller has checked that the shapes agree.
pub(crate) fn zip<S: Stored>(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(S::Real, S::Real) -> S::Real + Copy + Send + Sync,
) -> Result<Tensor> {
    let mut out = Tensor::empty(a.dims(), a.dtype(), a.device())?;
    let (a, b) = (a.as_slice::<S>()?, b.as_slice::<S>()?);
    let tasks = out.as_mut_slice::<S>()?.chunks_mut(CHUNK).zip(a.chunks(CHUNK).zip(b.chunks(CHUNK)));
    parallel::each(tasks, |(out, (a, b))| simd::dispatch(Zip { a, b, out, f }));
    Ok(out)
}

/// Slices of one length.
struct Map<'a, S, F> {
    x: &'a [S],
    out: &'a mut [S],
    f: F,
}

impl<S: Stored, F: Fn(S::Real) -> S::Real> Kernel for Map<'_, S, F> {
    type Output = ();
    /// Plain arithmetic, which the compiler turns into vectors of the caller's width.
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = S::narrow((self.f)(x.widen()));
        }
    }
}

/// Slices of one length.
struct Zip<'a, S, F> {
    a: &'a [S],
    b: &'a [S],
    out: &'a mut [S],
    f: F,
}

impl<S: Stored, F: Fn(S::Real, S::Real) -> S::Real> Kernel for Zip<'_, S, F> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for ((out, a), b) in self.out.iter_mut().zip(self.a).zip(self.b) {
            *out = S::narrow((self.f)(a.widen(), b.widen()));
        }
    }
}
