//! The inner loops over one tile: f32 in vectors, f64 plain. All are to be called inside [`crate::simd::dispatch`], with its
//! `V`.

use crate::real::Real;
use crate::simd::{MAX_LANES, Vector};
use std::ops::Range;

/// Rows and columns of a tile: three of the widest vectors.
pub(super) const BLOCK: usize = 3 * MAX_LANES;
/// Columns of a product come in multiples of this.
pub(super) const STEP: usize = MAX_LANES;
/// Terms of a sum that are added at once: the columns' rows stay in the first-level cache, and rounding near that of the last additions.
const DEPTH: usize = 128;

pub(super) trait Tile: Real {
    /// `c += a b`: a `[BLOCK, depth]`, b `[depth, columns]`, c `[BLOCK, columns]`, row-major; `columns` in whole `STEP`s.
    fn add_product<V: Vector>(a: &[Self], b: &[Self], c: &mut [Self], depth: usize, columns: usize);
    /// `x = exp((x - shift) scale)`, exactly 1 where x is the shift; returns the sum. Saturates where simd's `exp` does, so a NaN may vanish.
    fn exp_all<V: Vector>(x: &mut [Self], scale: Self, shift: Self) -> Self;
    /// The largest value, or NaN where there is one.
    fn largest<V: Vector>(x: &[Self]) -> Self;
    /// `(Σ t x, Σ t)`.
    fn weigh<V: Vector>(x: &[Self], t: &[Self]) -> (Self, Self);
}

impl Tile for f32 {
    #[inline(always)]
    fn add_product<V: Vector>(a: &[f32], b: &[f32], c: &mut [f32], depth: usize, columns: usize) {
        assert!(a.len() == BLOCK * depth && b.len() == depth * columns && c.len() == BLOCK * columns);
        assert!(columns.is_multiple_of(STEP));
        for first in (0..depth).step_by(DEPTH) {
            let product = Product { a, b, c: &mut *c, depth, part: first..depth.min(first + DEPTH), columns };
            // SAFETY: the slices were measured above; the sums of 8 rows fit 32 registers, those of 6 fit 16.
            unsafe {
                match V::LANES {
                    MAX_LANES => product.run::<V, 8>(3),
                    _ => product.run::<V, 6>(2),
                }
            }
        }
    }

    #[inline(always)]
    fn exp_all<V: Vector>(x: &mut [f32], scale: f32, shift: f32) -> f32 {
        // SAFETY: each step touches the `len` elements of its chunk.
        unsafe {
            let (scale, shift) = (V::splat(scale), V::splat(shift));
            let mut sum = V::zero();
            for x in x.chunks_mut(V::LANES) {
                let above = V::load_first(x.as_ptr(), x.len()).sub(shift);
                above.mul(scale).exp().store_first(x.as_mut_ptr(), x.len());
                sum = sum.add(V::load_first(x.as_ptr(), x.len())); // read again: lanes beyond the chunk count as 0
            }
            sum.sum()
        }
    }

    #[inline(always)]
    fn largest<V: Vector>(x: &[f32]) -> f32 {
        // SAFETY: whole chunks only.
        unsafe {
            let mut top = V::splat(f32::NEG_INFINITY);
            let mut sum = V::zero(); // `max` may drop a NaN, a sum does not
            let chunks = x.chunks_exact(V::LANES);
            let rest = chunks.remainder();
            for x in chunks {
                let x = V::load(x.as_ptr());
                (top, sum) = (top.max(x), sum.add(x));
            }
            let (top, sum) = rest.iter().fold((top.largest(), sum.sum()), |(top, sum), &x| (top.max(x), sum + x));
            top + 0.0 * sum
        }
    }

    #[inline(always)]
    fn weigh<V: Vector>(x: &[f32], t: &[f32]) -> (f32, f32) {
        // SAFETY: each step touches the elements of its chunks, which are of one length.
        unsafe {
            let (mut wanted, mut total) = (V::zero(), V::zero());
            for (x, t) in x.chunks(V::LANES).zip(t.chunks(V::LANES)) {
                let n = x.len().min(t.len());
                let t = V::load_first(t.as_ptr(), n);
                (wanted, total) = (t.fma(V::load_first(x.as_ptr(), n), wanted), total.add(t));
            }
            (wanted.sum(), total.sum())
        }
    }
}

/// `c += a b` over part of the depth: a `[BLOCK, depth]`, b `[depth, columns]`, c `[BLOCK, columns]`.
struct Product<'a> {
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
    depth: usize,
    part: Range<usize>,
    columns: usize,
}

impl Product<'_> {
    /// All columns, at most so many vectors at a time, by `ROWS` rows.
    ///
    /// # Safety
    /// As for [`Vector`]; the slices have their sizes, ROWS divides BLOCK, and columns are whole vectors.
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize>(self, vectors: usize) {
        let Product { a, b, c, depth, part, columns } = self;
        let mut column = 0;
        while column < columns {
            let now = vectors.min((columns - column) / V::LANES);
            for row in (0..BLOCK).step_by(ROWS) {
                // SAFETY: ROWS rows from `row` on are in a and c, `now` vectors from `column` on in b and c.
                unsafe {
                    let a = a.as_ptr().add(row * depth + part.start);
                    let b = b.as_ptr().add(part.start * columns + column);
                    let c = c.as_mut_ptr().add(row * columns + column);
                    match now {
                        3 => small_product::<V, ROWS, 3>(a, b, c, depth, part.len(), columns),
                        2 => small_product::<V, ROWS, 2>(a, b, c, depth, part.len(), columns),
                        _ => small_product::<V, ROWS, 1>(a, b, c, depth, part.len(), columns),
                    }
                }
            }
            column += now * V::LANES;
        }
    }
}

/// `ROWS` rows and `NV` vectors of columns, over `terms` of the depth.
///
/// # Safety
/// As for [`Vector`]; a reaches over `ROWS` rows of `depth`, b over `terms` rows and c over `ROWS` rows of `columns`, NV vectors wide.
#[inline(always)]
unsafe fn small_product<V: Vector, const ROWS: usize, const NV: usize>(
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    depth: usize,
    terms: usize,
    columns: usize,
) {
    unsafe {
        let mut sums = [[V::zero(); NV]; ROWS];
        for d in 0..terms {
            let mut right = [V::zero(); NV];
            for (v, right) in right.iter_mut().enumerate() {
                *right = V::load(b.add(d * columns + v * V::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = V::splat(*a.add(r * depth + d));
                for (sum, right) in sums.iter_mut().zip(&right) {
                    *sum = a.fma(*right, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                let c = c.add(r * columns + v * V::LANES);
                V::load(c).add(sum).store(c);
            }
        }
    }
}

impl Tile for f64 {
    #[inline(always)]
    fn add_product<V: Vector>(a: &[f64], b: &[f64], c: &mut [f64], depth: usize, columns: usize) {
        for (a, c) in a.chunks(depth).zip(c.chunks_mut(columns)) {
            for (&a, b) in a.iter().zip(b.chunks(columns)) {
                for (c, &b) in c.iter_mut().zip(b) {
                    *c += a * b;
                }
            }
        }
    }

    #[inline(always)]
    fn exp_all<V: Vector>(x: &mut [f64], scale: f64, shift: f64) -> f64 {
        let mut sum = 0.0;
        for x in x {
            *x = ((*x - shift) * scale).exp();
            sum += *x;
        }
        sum
    }

    #[inline(always)]
    fn largest<V: Vector>(x: &[f64]) -> f64 {
        x.iter().fold(f64::NEG_INFINITY, |top, &x| if top >= x || top.is_nan() { top } else { x })
    }

    #[inline(always)]
    fn weigh<V: Vector>(x: &[f64], t: &[f64]) -> (f64, f64) {
        (x.iter().zip(t).map(|(x, t)| x * t).sum(), t.iter().sum())
    }
}
