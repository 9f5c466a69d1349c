//! Row against row, in f64. The pieces (`dot`, `norm`, `pull`) also serve the VoCo losses.

use crate::real::Real;
use crate::simd::{self, Kernel, Vector};
use engine::{Element, Result, Tensor, parallel};

/// The smallest norm that is divided by.
const EPS: f64 = 1e-8;
/// Running sums of a dot product: the same for every width of vectors, and so is the result.
const LANES: usize = 16;

pub(super) fn forward<T: Real>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (n, m) = (a.dims()[0], b.dims()[0]);
    let mut y = Tensor::empty(&[n, m], a.dtype(), a.device())?;
    let (a, b) = (Rows::<T>::new(a)?, Rows::<T>::new(b)?);
    parallel::each(y.as_mut_slice::<T>()?.chunks_mut(m.max(1)).enumerate(), |(i, y)| {
        for (j, y) in y.iter_mut().enumerate() {
            *y = T::of(a.row(i).cosine(b.row(j)));
        }
    });
    Ok(y)
}

pub(super) fn backward<T: Real>(dy: &Tensor, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let m = b.dims()[0];
    let mut da = Tensor::empty(a.dims(), a.dtype(), a.device())?;
    let mut db = Tensor::empty(b.dims(), b.dtype(), b.device())?;
    let (a, b, dy) = (Rows::<T>::new(a)?, Rows::<T>::new(b)?, dy.as_slice::<T>()?);
    one_side(&a, &b, |i, j| dy[i * m + j], da.as_mut_slice::<T>()?);
    one_side(&b, &a, |j, i| dy[i * m + j], db.as_mut_slice::<T>()?);
    Ok((da, db))
}

/// The gradient of the rows of `x`, given that of the similarity of its row i with row j of `others`.
fn one_side<T: Real>(x: &Rows<T>, others: &Rows<T>, dy: impl Fn(usize, usize) -> T + Sync, dx: &mut [T]) {
    parallel::each(dx.chunks_mut(x.width).enumerate(), |(i, dx)| {
        let row = x.row(i);
        let pulls = (0..others.norms.len()).map(|j| {
            let other = others.row(j);
            Pull { weight: Element::to_f64(dy(i, j)), cosine: row.cosine(other), other }
        });
        gradient(row, pulls, dx);
    });
}

/// The rows of a `[N, D]` tensor and their norms.
pub(crate) struct Rows<'a, T> {
    values: &'a [T],
    width: usize,
    norms: Vec<f64>,
}

/// One row; `norm` is not clamped.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, T> {
    values: &'a [T],
    norm: f64,
}

impl<'a, T: Real> Rows<'a, T> {
    /// `t` is `[N, D]` with D > 0.
    pub(crate) fn new(t: &'a Tensor) -> Result<Self> {
        let (values, width) = (t.as_slice::<T>()?, t.channels());
        let norms = values.chunks(width).map(|row| dot(row, row).sqrt()).collect();
        Ok(Rows { values, width, norms })
    }

    pub(crate) fn row(&self, i: usize) -> Row<'_, T> {
        Row { values: &self.values[i * self.width..][..self.width], norm: self.norms[i] }
    }
}

impl<T: Real> Row<'_, T> {
    pub(crate) fn cosine(self, other: Row<'_, T>) -> f64 {
        dot(self.values, other.values) / (clamped(self.norm) * clamped(other.norm))
    }
}

/// `max(norm, EPS)`, but NaN stays NaN.
fn clamped(norm: f64) -> f64 {
    if norm < EPS { EPS } else { norm }
}

/// What one similarity contributes to a row's gradient: `weight` is the loss's derivative by `cosine`.
pub(crate) struct Pull<'a, T> {
    pub weight: f64,
    pub cosine: f64,
    pub other: Row<'a, T>,
}

/// Writes the gradient of `row`: the sum of all pulls, in their order.
pub(crate) fn gradient<'a, T: Real>(row: Row<'_, T>, pulls: impl Iterator<Item = Pull<'a, T>>, dx: &mut [T]) {
    let mut sum = vec![0.0; dx.len()];
    let norm = clamped(row.norm);
    let mut own = 0.0;
    for p in pulls {
        simd::dispatch(AddScaled {
            sum: &mut sum,
            x: p.other.values,
            scale: p.weight / (norm * clamped(p.other.norm)),
        });
        own -= p.weight * p.cosine;
    }
    if row.norm != 0.0 {
        simd::dispatch(AddScaled { sum: &mut sum, x: row.values, scale: own / (norm * row.norm) });
    }
    for (d, s) in dx.iter_mut().zip(sum) {
        *d = T::of(s);
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    simd::dispatch(Dot { a, b })
}

struct Dot<'a, T> {
    a: &'a [T],
    b: &'a [T],
}

impl<T: Real> Kernel for Dot<'_, T> {
    type Output = f64;

    /// Plain arithmetic, which the compiler turns into vectors of the caller's width.
    #[inline(always)]
    fn run<V: Vector>(self) -> f64 {
        let mut sums = [0.0; LANES];
        let ((a, a_rest), (b, b_rest)) = (self.a.as_chunks::<LANES>(), self.b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            add_products(&mut sums, a, b);
        }
        add_products(&mut sums, a_rest, b_rest);
        let mut n = LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                sums[i] += sums[i + n];
            }
        }
        sums[0]
    }
}

#[inline(always)]
fn add_products<T: Real>(sums: &mut [f64; LANES], a: &[T], b: &[T]) {
    for ((s, &a), &b) in sums.iter_mut().zip(a).zip(b) {
        *s += Element::to_f64(a) * Element::to_f64(b);
    }
}

struct AddScaled<'a, T> {
    sum: &'a mut [f64],
    x: &'a [T],
    scale: f64,
}

impl<T: Real> Kernel for AddScaled<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for (s, &x) in self.sum.iter_mut().zip(self.x) {
            *s += self.scale * Element::to_f64(x);
        }
    }
}
