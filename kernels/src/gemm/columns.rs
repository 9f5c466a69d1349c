//! A few rows times weights whose outputs lie side by side, as in the gradient of a linear layer's input: vectors run along outputs, and
//! the weights are read once, from where they are. [`super::rows`] has the case of inputs side by side.
//!
//! An output's sum runs over inputs in order, in parts that are added one after the other: results depend neither on the width of
//! vectors nor on threads.

use super::operand::Operand;
use super::rows::{Task, row_stride};
use crate::simd::{MAX_LANES, Vector, will_read};
use std::ops::Range;

/// Outputs of a task: the widest tile's.
pub const OUTPUTS: usize = 12 * MAX_LANES;
/// Inputs of a part of a sum.
const PART: usize = 128;
/// Inputs further on whose weights memory is asked for: they lie too far apart for the CPU to foresee.
const AHEAD: usize = 8;

impl<S: Operand> Task<'_, S> {
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    pub unsafe fn columns<V: Vector>(&self) {
        let mut rows = 0..self.all.pixels.len();
        // SAFETY: the caller's instruction set. Accumulators and operands fit 32 registers, or 16 of 8 lanes.
        unsafe {
            if V::LANES == MAX_LANES {
                self.columns_of::<V, 8, 2>(&mut rows);
                self.columns_of::<V, 4, 6>(&mut rows);
                self.columns_of::<V, 2, 12>(&mut rows);
                self.columns_of::<V, 1, 12>(&mut rows);
            } else {
                self.columns_of::<V, 4, 2>(&mut rows);
                self.columns_of::<V, 1, 6>(&mut rows);
            }
        }
    }

    /// All outputs of `rows`, M at a time, which are then taken off.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn columns_of<V: Vector, const M: usize, const NV: usize>(&self, rows: &mut Range<usize>) {
        while rows.len() >= M {
            let mut output = self.outputs.start;
            // SAFETY: as for this function.
            unsafe {
                while output + NV * V::LANES <= self.outputs.end {
                    self.column_tile::<V, M, NV>(rows.start, output, V::LANES);
                    output += NV * V::LANES;
                }
                while output < self.outputs.end {
                    self.column_tile::<V, M, 1>(rows.start, output, V::LANES.min(self.outputs.end - output));
                    output += V::LANES;
                }
            }
            rows.start += M;
        }
    }

    /// NV vectors of outputs of M rows; of the last vector `n` lanes.
    ///
    /// # Safety
    /// As for [`Vector`]; there must be M rows, and as many outputs.
    #[inline(always)]
    unsafe fn column_tile<V: Vector, const M: usize, const NV: usize>(&self, row: usize, output: usize, n: usize) {
        let all = self.all;
        // SAFETY: the weights have all outputs of all inputs; this task alone writes its outputs.
        unsafe {
            let mut totals = [[V::zero(); NV]; M];
            for first in (0..all.channels).step_by(PART) {
                let inputs = first..all.channels.min(first + PART);
                let sums = self.part::<V, M, NV>(row, output, n, inputs);
                for (totals, sums) in totals.iter_mut().zip(&sums) {
                    for (total, sum) in totals.iter_mut().zip(sums) {
                        *total = total.add(*sum);
                    }
                }
            }
            for (i, totals) in totals.iter().enumerate() {
                for (j, total) in totals.iter().enumerate() {
                    let output = output + j * V::LANES;
                    let bias = match all.bias {
                        Some(bias) => V::load_first(bias.as_ptr().add(output), n),
                        None => V::zero(),
                    };
                    S::store_first(total.add(bias), self.to.0.add(all.pixels[row + i] * all.n + output), n);
                }
            }
        }
    }

    /// A tile's sums over some inputs.
    ///
    /// # Safety
    /// As for [`Task::column_tile`].
    #[inline(always)]
    unsafe fn part<V: Vector, const M: usize, const NV: usize>(
        &self,
        row: usize,
        output: usize,
        n: usize,
        inputs: Range<usize>,
    ) -> [[V; NV]; M] {
        let (all, stride) = (self.all, row_stride::<S>(self.all.channels));
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[V::zero(); NV]; M];
            for k in inputs {
                let weights = all.weight.as_ptr().add(k * all.steps[0] + output);
                let mut x = [V::zero(); M];
                for (i, x) in x.iter_mut().enumerate() {
                    *x = V::splat((*all.source.as_ptr().add((row + i) * stride + k)).widen());
                }
                for j in 0..NV {
                    will_read(weights.wrapping_add(AHEAD * all.steps[0] + j * V::LANES));
                    let at = weights.add(j * V::LANES);
                    let w: V = if n == V::LANES { S::load(at) } else { S::load_first(at, n) };
                    for (sums, x) in sums.iter_mut().zip(&x) {
                        sums[j] = x.fma(w, sums[j]);
                    }
                }
            }
            sums
        }
    }
}
