//! One pass over five arrays in fixed chunks: 36 bytes moved per f32 parameter, so memory sets the pace.

use super::{Params, State};
use crate::real::Real;
use crate::simd::{self, Kernel, Vector};
use engine::{Result, Tensor, parallel};

/// Elements per task.
const CHUNK: usize = 1 << 14;

pub(super) fn update<T: Real>(param: &mut Tensor, grad: &Tensor, state: State<'_>, p: Params) -> Result<()> {
    let scalars = Scalars::<T>::new(p);
    let m = state.m.as_mut_slice::<T>()?.chunks_mut(CHUNK);
    let v = state.v.as_mut_slice::<T>()?.chunks_mut(CHUNK);
    let vmax = state.vmax.as_mut_slice::<T>()?.chunks_mut(CHUNK);
    let values = param.as_mut_slice::<T>()?.chunks_mut(CHUNK).zip(grad.as_slice::<T>()?.chunks(CHUNK));
    parallel::each(values.zip(m.zip(v).zip(vmax)), |((param, grad), ((m, v), vmax))| {
        simd::dispatch(Chunk { param, grad, m, v, vmax, scalars })
    });
    Ok(())
}

/// What is the same for every element, computed in f64 and rounded once.
#[derive(Clone, Copy)]
pub(super) struct Scalars<T> {
    pub keep: T,
    pub beta1: T,
    pub one_minus_beta1: T,
    pub beta2: T,
    pub one_minus_beta2: T,
    pub step_size: T,
    pub root_correction: T,
    pub eps: T,
    pub unscale: T,
}

impl<T: Real> Scalars<T> {
    pub fn new(p: Params) -> Self {
        let t = p.step as f64;
        Scalars {
            keep: T::of(1.0 - p.lr * p.weight_decay),
            beta1: T::of(p.beta1),
            one_minus_beta1: T::of(1.0 - p.beta1),
            beta2: T::of(p.beta2),
            one_minus_beta2: T::of(1.0 - p.beta2),
            step_size: T::of(p.lr / (1.0 - p.beta1.powf(t))),
            root_correction: T::of((1.0 - p.beta2.powf(t)).sqrt()),
            eps: T::of(p.eps),
            unscale: T::of(1.0 / p.scale),
        }
    }
}

struct Chunk<'a, T> {
    param: &'a mut [T],
    grad: &'a [T],
    m: &'a mut [T],
    v: &'a mut [T],
    vmax: &'a mut [T],
    scalars: Scalars<T>,
}

impl<T: Real> Kernel for Chunk<'_, T> {
    type Output = ();

    /// Plain arithmetic, which the compiler turns into vectors of the caller's width: element-wise and without FMA, so that
    /// every width gives the same bits.
    #[inline(always)]
    fn run<V: Vector>(self) {
        step(self.param, self.grad, self.m, self.v, self.vmax, self.scalars)
    }
}

/// Slices as arguments of a function tell the compiler that they do not overlap.
#[inline(always)]
fn step<T: Real>(param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], vmax: &mut [T], s: Scalars<T>) {
    let n = param.len();
    let (grad, m, v, vmax) = (&grad[..n], &mut m[..n], &mut v[..n], &mut vmax[..n]);
    for i in 0..n {
        let g = grad[i] * s.unscale;
        m[i] = s.beta1 * m[i] + s.one_minus_beta1 * g;
        v[i] = s.beta2 * v[i] + s.one_minus_beta2 * g * g;
        vmax[i] = if vmax[i] >= v[i] { vmax[i] } else { v[i] }; // v is NaN from its first on, and so is this
        let denominator = vmax[i].sqrt() / s.root_correction + s.eps;
        param[i] = s.keep * param[i] - s.step_size * (m[i] / denominator);
    }
}
