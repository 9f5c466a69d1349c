//! The gradient of a weight of few inputs and outputs: `dw[o][tap][c] = sum over lines, w of dy[line][o][w] * x[line][c][w + tap]`,
//! with the lines of both turned. A unit is some blocks, whose sums it adds to its own copy of the gradient; how many copies there are
//! follows from the shape alone, and they are added in order.
//!
//! Vectors reach over the end of a line, where dy is zero: what is not finite in the last pixels of a line of x reaches all taps.

use super::super::gradient::{Gradient, cut_blocks, sum_chunks};
use super::super::map::Run;
use super::super::tile::Target;
use super::blocks::Blocks;
use super::lines::{Lines, RowLines, pitch};
use crate::simd::{Kernel, MAX_LANES, Vector, dispatch};
use engine::parallel;
use std::ops::Range;

/// Whether a gradient should run along W: where that fills so many more lanes that it pays to turn lines. With one channel, three lines
/// of taps in a tile are as fast.
pub fn fits(g: &Gradient<f32>) -> bool {
    let (wide, taps) = (g.map.line_rows(), g.map.line_taps());
    let can = g.copies_lines() && g.map.line_step() == 1 && g.n > 1;
    can && 6 * wide.next_multiple_of(MAX_LANES) * g.m * taps * g.n < 5 * wide * g.lanes()
}

/// Writes `dw`, `[m][taps][n]`.
pub fn run(gradient: &Gradient<f32>, dw: &mut [f32]) {
    let (map, wide) = (gradient.map, gradient.map.line_rows().next_multiple_of(MAX_LANES));
    let blocks = Blocks::new(map, [gradient.n * pitch(map), gradient.m * wide], 1);
    let (chunks, chunk) = cut_blocks(blocks.count(), map.rows(), 1, dw.len());
    sum_chunks(dw, chunks, |targets| {
        parallel::run_with(chunks, Scratch::default, |scratch, i| {
            let some = i * chunk..blocks.count().min((i + 1) * chunk);
            dispatch(Unit { gradient, blocks: &blocks, some, wide, to: targets[i], scratch });
        });
    });
}

/// What a thread reuses from unit to unit.
#[derive(Default)]
struct Scratch {
    runs: Vec<Run>,
    x: Lines,
    dy: RowLines,
    /// The lines of dy and x that meet under a line of taps.
    met: Vec<[*const f32; 2]>,
}

struct Unit<'a> {
    gradient: &'a Gradient<'a, f32>,
    blocks: &'a Blocks<'a>,
    some: Range<usize>,
    /// Rows of a line in whole vectors, which is the pitch of dy.
    wide: usize,
    /// `[m][taps][n]`.
    to: Target<f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let g = self.gradient;
        for block in self.some.clone() {
            let s = &mut *self.scratch;
            self.blocks.runs(block, &mut s.runs);
            s.x.copy::<V>(g.map, g.x, g.n, &s.runs);
            let lines = s.runs.iter().map(|run| g.map.first_row(run)).map(|row| row..row + g.map.line_rows());
            s.dy.copy::<V>(g.y, g.m, self.wide, lines);
            for line in 0..g.map.taps() / g.map.line_taps() {
                self.list(line);
                // SAFETY: `dispatch` gave the instruction set; with 16 lanes there are 32 registers, and 16 with 8.
                unsafe {
                    if V::LANES == MAX_LANES {
                        self.add::<V, 4, 6>(line, block == self.some.start);
                    } else {
                        self.add::<V, 2, 3>(line, block == self.some.start);
                    }
                }
            }
        }
    }
}

impl Unit<'_> {
    /// Lists the lines that meet under a line of taps.
    fn list(&mut self, line: usize) {
        let s = &mut *self.scratch;
        s.met.clear();
        for run in 0..s.runs.len() {
            if let Some(x) = s.x.met(line, run) {
                s.met.push([s.dy.line(run, self.gradient.m * self.wide), x]);
            }
        }
    }

    /// Adds the sums of a line of taps, M outputs by N channels under a tap at a time.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn add<V: Vector, const M: usize, const N: usize>(&mut self, line: usize, first: bool) {
        let (m, mut o) = (self.gradient.m, 0);
        // SAFETY: as for this function.
        unsafe {
            while o + M <= m {
                self.outputs::<V, M, N>(line, o, first);
                o += M;
            }
            while o < m {
                self.outputs::<V, 1, N>(line, o, first);
                o += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn outputs<V: Vector, const M: usize, const N: usize>(&mut self, line: usize, o: usize, first: bool) {
        let (columns, mut j) = (self.gradient.n * self.gradient.map.line_taps(), 0);
        // SAFETY: as for `add`.
        unsafe {
            while j + N <= columns {
                self.tile::<V, M, N>(line, o, j, first);
                j += N;
            }
            while j < columns {
                self.tile::<V, M, 1>(line, o, j, first);
                j += 1;
            }
        }
    }

    /// Adds the sums of outputs o to o + M, and of channels under a tap, j to j + N.
    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize, const N: usize>(&mut self, line: usize, o: usize, j: usize, first: bool) {
        let g = self.gradient;
        let (taps, line_taps, pitch) = (g.map.taps(), g.map.line_taps(), pitch(g.map));
        let mut places = [0; N];
        for (i, place) in places.iter_mut().enumerate() {
            *place = (j + i) / line_taps * pitch + (j + i) % line_taps;
        }
        // SAFETY: lines have whole vectors under every tap; this unit alone writes its copy of the gradient.
        unsafe {
            let mut sums = [[V::zero(); N]; M];
            for lane in (0..MAX_LANES).step_by(V::LANES) {
                let part = self.sums::<V, M, N>(o, &places, lane);
                for (sums, part) in sums.iter_mut().zip(&part) {
                    for (sum, part) in sums.iter_mut().zip(part) {
                        *sum = sum.add(*part);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (k, sum) in sums.iter().enumerate() {
                    let (channel, tap) = ((j + k) / line_taps, (j + k) % line_taps);
                    let to = self.to.0.add(((o + i) * taps + line * line_taps + tap) * g.n + channel);
                    *to = if first { sum.sum() } else { *to + sum.sum() };
                }
            }
        }
    }

    /// The sums in some of the 16 lanes, from `lane` on.
    #[inline(always)]
    unsafe fn sums<V: Vector, const M: usize, const N: usize>(
        &self,
        o: usize,
        places: &[usize; N],
        lane: usize,
    ) -> [[V; N]; M] {
        let wide = self.wide;
        // SAFETY: the caller's.
        unsafe {
            let mut sum = [[V::zero(); N]; M];
            for [dy, x] in &self.scratch.met {
                let dy = dy.add(o * wide + lane);
                let mut from = [*x; N];
                for (from, place) in from.iter_mut().zip(places) {
                    *from = from.add(place + lane);
                }
                for w in (0..wide).step_by(MAX_LANES) {
                    let mut right = [V::zero(); N];
                    for (right, from) in right.iter_mut().zip(&from) {
                        *right = V::load(from.add(w));
                    }
                    for (i, sum) in sum.iter_mut().enumerate() {
                        let left = V::load(dy.add(i * wide + w));
                        for (sum, right) in sum.iter_mut().zip(&right) {
                            *sum = left.fma(*right, *sum);
                        }
                    }
                }
            }
            sum
        }
    }
}
