//! The inner loops over one tile: f32 in vectors, f64 plain. All are to be called inside [`crate::simd::dispatch`], with its
//! `V`.

use crate::real::Real;
use crate::simd::{MAX_LANES, Vector, will_read};

/// Rows and columns of a tile.
pub(super) const BLOCK: usize = 64;
/// Columns of a product come in multiples of this: two of the widest vectors.
pub(super) const STEP: usize = 2 * MAX_LANES;

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
        // SAFETY: the slices were measured above; the sums of 8 rows fit 32 registers, those of 4 fit 16.
        unsafe {
            match V::LANES {
                MAX_LANES => all_products::<V, 8>(a, b, c, depth, columns),
                _ => all_products::<V, 4>(a, b, c, depth, columns),
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

/// All columns, two vectors of ROWS rows at a time.
///
/// # Safety
/// As for [`Vector`]; a is `[BLOCK, depth]`, b `[depth, columns]`, c `[BLOCK, columns]`, and columns are whole STEPs.
#[inline(always)]
unsafe fn all_products<V: Vector, const ROWS: usize>(
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    depth: usize,
    columns: usize,
) {
    for column in (0..columns).step_by(2 * V::LANES) {
        for row in (0..BLOCK).step_by(ROWS) {
            // SAFETY: row + ROWS <= BLOCK and column + 2 LANES <= columns, as both divide.
            unsafe {
                let (a, b) = (a.as_ptr().add(row * depth), b.as_ptr().add(column));
                // the next columns lie in other pages: the first rows ask for their lines
                let ahead = b.wrapping_add(2 * V::LANES + row / ROWS % 2 * V::LANES);
                small_product::<V, ROWS>(a, b, ahead, c.as_mut_ptr().add(row * columns + column), depth, columns);
            }
        }
    }
}

/// `ROWS` rows and two vectors of columns.
///
/// # Safety
/// a reaches over `ROWS` rows of `depth`, b over `depth` rows and c over `ROWS` rows of `columns`, two vectors wide.
#[inline(always)]
unsafe fn small_product<V: Vector, const ROWS: usize>(
    a: *const f32,
    b: *const f32,
    ahead: *const f32,
    c: *mut f32,
    depth: usize,
    columns: usize,
) {
    unsafe {
        let mut sums = [[V::zero(); 2]; ROWS];
        for d in 0..depth {
            will_read(ahead.wrapping_add(d * columns));
            let b = [V::load(b.add(d * columns)), V::load(b.add(d * columns + V::LANES))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = V::splat(*a.add(r * depth + d));
                *sums = [a.fma(b[0], sums[0]), a.fma(b[1], sums[1])];
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
