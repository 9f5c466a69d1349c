//! A few rows times weights, which are read once, from where they are: to pack them first, as for many rows, would take longer than the
//! sums. Where inputs lie side by side, as those of a linear layer do, every output is a dot product; where outputs do, see
//! [`super::columns`].
//!
//! A dot product runs in 16 lanes on every CPU, added by halves at its end: results depend neither on the width of vectors nor on
//! threads.

use super::columns;
use super::operand::Operand;
use super::tile::Target;
use crate::simd::{Kernel, MAX_LANES, Vector};
use engine::parallel;
use std::ops::Range;

/// Rows up to which weights are better read from where they are.
pub const MOST_ROWS: usize = 32;
/// Outputs of a task.
const OUTPUTS: usize = 48;

pub struct Rows<'a, S> {
    /// Inputs, `[rows][row_stride(channels)]`.
    pub source: Vec<S>,
    pub channels: usize,
    /// Which pixel of the target each row is.
    pub pixels: Vec<usize>,
    /// The weight of input k for output n is at `k * steps[0] + n * steps[1]`, and one of the steps is 1.
    pub weight: &'a [S],
    pub steps: [usize; 2],
    pub bias: Option<&'a [f32]>,
    pub n: usize,
}

/// Distance of rows of so many inputs: with rows of a multiple of 4 KiB right behind each other, all would want the same few places
/// of the first-level cache.
pub fn row_stride<S: Operand>(channels: usize) -> usize {
    channels + MAX_LANES * S::PER_LANE
}

impl<S: Operand> Rows<'_, S> {
    /// Writes the rows' pixels of the target, `n` values each.
    pub fn run(&self, target: &mut [S]) {
        let to = Target(target.as_mut_ptr());
        let share = if self.has_inputs_side_by_side() { OUTPUTS } else { columns::OUTPUTS };
        parallel::run(self.n.div_ceil(share), &|task| {
            let outputs = task * share..self.n.min((task + 1) * share);
            S::dispatch(Task { all: self, outputs, to });
        });
    }

    fn has_inputs_side_by_side(&self) -> bool {
        self.steps[0] == 1
    }
}

/// Some outputs of all rows.
pub struct Task<'a, S> {
    pub all: &'a Rows<'a, S>,
    pub outputs: Range<usize>,
    pub to: Target<S>,
}

impl<S: Operand> Kernel for Task<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `dispatch` gave the instruction set.
        unsafe { if self.all.has_inputs_side_by_side() { self.dot_products::<V>() } else { self.columns::<V>() } }
    }
}

impl<S: Operand> Task<'_, S> {
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn dot_products<V: Vector>(&self) {
        let mut rows = 0..self.all.pixels.len();
        // SAFETY: the caller's instruction set. Accumulators and operands fit 32 registers, or 16 of 8 lanes.
        unsafe {
            if V::LANES == MAX_LANES {
                self.all_rows::<V, 8, 2, 1>(&mut rows);
                self.all_rows::<V, 4, 3, 1>(&mut rows);
                self.all_rows::<V, 2, 3, 1>(&mut rows);
                self.all_rows::<V, 1, 3, 1>(&mut rows);
            } else {
                self.all_rows::<V, 2, 2, 2>(&mut rows);
                self.all_rows::<V, 1, 2, 2>(&mut rows);
            }
        }
    }

    /// All outputs of `rows`, M at a time, which are then taken off; P vectors make 16 lanes.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn all_rows<V: Vector, const M: usize, const N: usize, const P: usize>(&self, rows: &mut Range<usize>) {
        while rows.len() >= M {
            let now = rows.start;
            rows.start += M;
            let mut j = self.outputs.start;
            // SAFETY: as for this function.
            unsafe {
                while j + N <= self.outputs.end {
                    self.tile::<V, M, N, P>(now, j);
                    j += N;
                }
                while j < self.outputs.end {
                    self.tile::<V, M, 1, P>(now, j);
                    j += 1;
                }
            }
        }
    }

    /// Outputs j to j + N of M rows from `row` on.
    ///
    /// # Safety
    /// As for [`Vector`]; there must be M rows, and as many outputs.
    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize, const N: usize, const P: usize>(&self, row: usize, j: usize) {
        let all = self.all;
        let (lanes, row_stride) = (S::lanes(all.channels), row_stride::<S>(all.channels));
        let whole = lanes / MAX_LANES * MAX_LANES;
        // SAFETY: a row, and the weights of an output, have `lanes` lanes; this task alone writes its outputs.
        unsafe {
            let mut sums = [[[V::zero(); P]; N]; M];
            let x: [_; M] = std::array::from_fn(|i| all.source.as_ptr().add((row + i) * row_stride).cast::<f32>());
            let w: [_; N] = std::array::from_fn(|o| all.weight.as_ptr().add((j + o) * all.steps[1]).cast::<f32>());
            for k in (0..whole).step_by(MAX_LANES) {
                for part in 0..P {
                    let at = k + part * V::LANES;
                    add::<S, V, M, N, P>(&mut sums, part, vectors(&x, at, V::LANES), vectors(&w, at, V::LANES));
                }
            }
            if whole < lanes {
                for part in 0..P {
                    let n = (lanes - whole).saturating_sub(part * V::LANES).min(V::LANES);
                    let at = (whole + part * V::LANES).min(lanes);
                    add::<S, V, M, N, P>(&mut sums, part, vectors(&x, at, n), vectors(&w, at, n));
                }
            }
            for (sums, pixel) in sums.iter().zip(&all.pixels[row..]) {
                for (o, parts) in sums.iter().enumerate() {
                    let sum = parts[1..].iter().fold(parts[0], |sum, &part| sum.add(part));
                    let value = sum.sum() + all.bias.map_or(0.0, |bias| bias[j + o]);
                    self.to.0.add(pixel * all.n + j + o).write(S::narrow(value));
                }
            }
        }
    }
}

/// `n` lanes of each row from `at` on. A loop rather than a closure, in which what needs the instruction set is not inlined.
///
/// # Safety
/// As for [`Vector`]; the rows must reach as far.
#[inline(always)]
unsafe fn vectors<V: Vector, const K: usize>(rows: &[*const f32; K], at: usize, n: usize) -> [V; K] {
    // SAFETY: the caller's.
    unsafe {
        let mut vectors = [V::zero(); K];
        for (vector, row) in vectors.iter_mut().zip(rows) {
            *vector = if n == V::LANES { V::load(row.add(at)) } else { V::load_first(row.add(at), n) };
        }
        vectors
    }
}

/// Adds the products of vectors of rows and of outputs to one part of the 16 lanes of their sums.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn add<S: Operand, V: Vector, const M: usize, const N: usize, const P: usize>(
    sums: &mut [[[V; P]; N]; M],
    part: usize,
    x: [V; M],
    w: [V; N],
) {
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sums, w) in sums.iter_mut().zip(w) {
            // SAFETY: the caller's instruction set.
            sums[part] = unsafe { S::multiply_add(x, w, sums[part]) };
        }
    }
}
