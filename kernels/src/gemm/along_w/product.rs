//! Which products run along W, and how.

use super::super::map::Run;
use super::super::product::{self, Product, Step};
use super::super::tile::Target;
use super::blocks::Blocks;
use super::lines::{Lines, pitch};
use crate::simd::{Kernel, MAX_LANES, SIDE, Vector, dispatch, transpose_to, will_read, will_write};
use engine::{Result, parallel};
use std::ops::Range;

/// Outputs of a tile.
const OUTPUTS: usize = 12;
/// Most rows that are summed at a time, where a line is not longer.
const GROUP_ROWS: usize = 256;

/// Writes the target pixels that the rows of all products name: of those that fit along W, and of the others.
pub fn run(products: &[Product<f32>], target: &mut [f32]) -> Result<()> {
    let (along_w, others): (Vec<_>, Vec<_>) = products.iter().copied().partition(AlongW::fits);
    along_w.iter().for_each(|product| AlongW::new(product).run(target));
    product::run(&others, target)
}

struct AlongW<'a> {
    product: &'a Product<'a, f32>,
    /// Rows of a line.
    wide: usize,
    blocks: Blocks<'a>,
    steps: Vec<Step>,
    /// `[parts of OUTPUTS, taps / line_taps, channels, line_taps, OUTPUTS]`, zero behind the last output.
    weights: Vec<f32>,
}

impl<'a> AlongW<'a> {
    /// Whether a product should run along W: where that fills so many more lanes that it pays to turn lines and results.
    fn fits(p: &Product<f32>) -> bool {
        let (wide, n) = (p.map.line_rows(), p.n);
        let lanes =
            [wide.next_multiple_of(MAX_LANES) * n.next_multiple_of(OUTPUTS), wide * n.next_multiple_of(MAX_LANES)];
        let can = p.copies_lines() && p.map.line_step() == 1 && !p.has_few_rows();
        can && 6 * lanes[0] < 5 * lanes[1]
    }

    fn new(product: &'a Product<'a, f32>) -> Self {
        let (map, wide) = (product.map, product.map.line_rows());
        let blocks = Blocks::new(map, [product.channels * pitch(map), 0], 4 * rayon::current_num_threads());
        AlongW { product, wide, blocks, steps: product.steps(), weights: pack(product) }
    }

    /// Writes the target pixels that the rows name.
    fn run(&self, target: &mut [f32]) {
        let to = Target(target.as_mut_ptr());
        parallel::run_with(self.blocks.count(), Scratch::default, |scratch, i| {
            self.blocks.runs(i, &mut scratch.runs);
            dispatch(Unit { all: self, to, scratch });
        });
    }

    /// Where in the target the outputs of a run's row are.
    fn outputs(&self, run: &Run, row: usize) -> usize {
        let (pixel, stride) = self.product.map.target(run);
        (pixel + row * stride) * self.product.n
    }

    /// Weights of one part of the outputs from a line of taps on.
    fn weights(&self, part: usize, line: usize) -> *const f32 {
        let size = self.product.channels * self.product.map.line_taps() * OUTPUTS;
        self.weights[(part * (self.product.map.taps() / self.product.map.line_taps()) + line) * size..].as_ptr()
    }
}

fn pack(p: &Product<f32>) -> Vec<f32> {
    let (map, taps) = (p.map, p.map.line_taps());
    let mut weights = Vec::with_capacity(p.n.next_multiple_of(OUTPUTS) * p.channels * map.taps());
    for part in (0..p.n).step_by(OUTPUTS) {
        for line in (0..map.taps()).step_by(taps) {
            for channel in 0..p.channels {
                for tap in line..line + taps {
                    let value = |n| if n < p.n { p.weight.at(map.kernel_tap(tap), channel, n) } else { 0.0 };
                    weights.extend((part..part + OUTPUTS).map(value));
                }
            }
        }
    }
    weights
}

/// What a thread reuses from unit to unit.
#[derive(Default)]
struct Scratch {
    runs: Vec<Run>,
    lines: Lines,
    /// The run and the row in it that each vector of a group's rows begins with.
    vectors: Vec<(usize, usize)>,
    /// `[OUTPUTS, step]`: runs of whole vectors, and one vector more.
    sums: Vec<f32>,
}

/// A block of lines, some of them at a time.
struct Unit<'a> {
    all: &'a AlongW<'a>,
    to: Target<f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let (p, s) = (self.all.product, &mut *self.scratch);
        s.lines.copy::<V>(p.map, p.source, p.channels, &s.runs);
        let (runs, lines) = (s.runs.len(), (GROUP_ROWS / self.all.wide).max(1));
        for start in (0..runs).step_by(lines) {
            let group = start..runs.min(start + lines);
            self.cut::<V>(group.clone());
            for part in 0..self.all.product.n.div_ceil(OUTPUTS) {
                // SAFETY: `dispatch` gave the instruction set; with 16 lanes there are 32 registers, and 16 with 8.
                unsafe {
                    for step in &self.all.steps {
                        if V::LANES == MAX_LANES { self.add::<V, 2>(part, step) } else { self.add::<V, 1>(part, step) }
                    }
                    self.put::<V>(group.clone(), part);
                }
            }
        }
    }
}

impl Unit<'_> {
    /// Rows of a run in whole vectors.
    fn width(&self) -> usize {
        self.all.wide.next_multiple_of(MAX_LANES)
    }

    /// Sums of an output.
    fn step<V: Vector>(&self) -> usize {
        self.scratch.vectors.len() * V::LANES + MAX_LANES
    }

    /// Cuts a group of runs into vectors, and makes room for their sums.
    #[inline(always)]
    fn cut<V: Vector>(&mut self, group: Range<usize>) {
        let width = self.width();
        self.scratch.vectors.clear();
        for run in group {
            self.scratch.vectors.extend((0..width).step_by(V::LANES).map(|place| (run, place)));
        }
        let size = OUTPUTS * self.step::<V>();
        self.scratch.sums.resize(size, 0.0);
    }

    /// The bias of a part, or zeros.
    fn bias(&self, part: usize) -> [f32; OUTPUTS] {
        let bias = self.all.product.bias.map_or(&[][..], |bias| &bias[part * OUTPUTS..]);
        std::array::from_fn(|o| bias.get(o).copied().unwrap_or(0.0))
    }

    /// Adds a step to the sums, NV vectors of rows at a time.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn add<V: Vector, const NV: usize>(&mut self, part: usize, step: &Step) {
        let (all, row, bias) = (self.all, self.step::<V>(), self.bias(part));
        let (taps, pitch) = (all.product.map.line_taps(), pitch(all.product.map));
        let (first, end) = (step.taps.start / taps, step.taps.end / taps);
        let s = &mut *self.scratch;
        for (i, vectors) in s.vectors.chunks(NV).enumerate() {
            // SAFETY: a line has all values of its run, in whole vectors; the sums have a place for the vector after the last.
            unsafe {
                let mut sum = [[V::zero(); NV]; OUTPUTS];
                let mut walk = Walk { weights: all.weights(part, first), write: s.sums.as_mut_ptr(), written: 0 };
                if part == 0 && step.taps.end == all.product.map.taps() {
                    let (run, place) = vectors[0];
                    walk.write = self.to.0.wrapping_add(all.outputs(&s.runs[run], place));
                    walk.written = (NV * V::LANES * all.product.n).div_ceil(step.taps.len() * all.product.channels);
                }
                for line in first..end {
                    let mut x = [s.lines.zeros(); NV];
                    for (x, &(run, place)) in x.iter_mut().zip(vectors) {
                        *x = s.lines.met(line, run).unwrap_or(*x).add(place);
                    }
                    add_line(&mut sum, x, &mut walk, all.product.channels, taps, pitch);
                }
                let to = s.sums.as_mut_ptr().add(i * NV * V::LANES);
                for (o, sum) in sum.iter().enumerate() {
                    for (v, sum) in sum.iter().enumerate() {
                        let to = to.add(o * row + v * V::LANES);
                        let before = if first == 0 { V::splat(bias[o]) } else { V::load(to) };
                        before.add(*sum).store(to);
                    }
                }
            }
        }
    }

    /// Writes the sums to the outputs of a part.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn put<V: Vector>(&mut self, group: Range<usize>, part: usize) {
        let (p, width, row, s) = (self.all.product, self.width(), self.step::<V>(), &*self.scratch);
        let outputs = (p.n - part * OUTPUTS).min(OUTPUTS);
        for (i, run) in s.runs[group].iter().enumerate() {
            let (_, stride) = p.map.target(run);
            for first in (0..run.len()).step_by(SIDE) {
                let at = self.all.outputs(run, first) + part * OUTPUTS;
                // SAFETY: the map names pixels of the target, and this unit alone writes these.
                unsafe {
                    let (sums, to) = (&s.sums[i * width + first..], self.to.0.add(at));
                    if outputs == OUTPUTS && run.len() - first >= SIDE {
                        turn::<V>(sums, row, to, stride * p.n);
                        continue;
                    }
                    let mut turned = [0.0; SIDE * OUTPUTS];
                    turn::<V>(sums, row, turned.as_mut_ptr(), OUTPUTS);
                    for (j, turned) in turned.chunks_exact(OUTPUTS).enumerate().take(run.len() - first) {
                        let to = to.add(j * stride * p.n);
                        turned[..outputs].iter().enumerate().for_each(|(o, &v)| to.add(o).write(v));
                    }
                }
            }
        }
    }
}

/// Writes SIDE rows of OUTPUTS values, `to_step` apart, whose columns are `step` apart.
///
/// # Safety
/// As for [`Vector`]; there must be as many values at `to`.
#[inline(always)]
unsafe fn turn<V: Vector>(from: &[f32], step: usize, to: *mut f32, to_step: usize) {
    // The last block of columns ends with the last one, and meets some of the one before again.
    for column in [0, OUTPUTS - SIDE] {
        // SAFETY: the caller's.
        unsafe { transpose_to::<f32, V>(&from[column * step..], step, SIDE, to.add(column), to_step) }
    }
}

/// What a tile walks along from tap to tap: its weights, and the outputs that will be written, which it asks memory for, so many values
/// at each tap. Where there is nothing to ask for, none: its own.
struct Walk {
    weights: *const f32,
    write: *mut f32,
    written: usize,
}

/// Adds the products of a line of taps, for which row and tap 0 lie at `x` in the first channel.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn add_line<V: Vector, const NV: usize>(
    sum: &mut [[V; NV]; OUTPUTS],
    mut x: [*const f32; NV],
    walk: &mut Walk,
    channels: usize,
    taps: usize,
    pitch: usize,
) {
    // SAFETY: the caller vouches for `channels` rows of x and as many weights.
    unsafe {
        for _ in 0..channels {
            for tap in 0..taps {
                let mut right = [V::zero(); NV];
                for (right, x) in right.iter_mut().zip(&x) {
                    *right = V::load(x.add(tap));
                }
                for (o, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*walk.weights.add(o));
                    for (sum, right) in sum.iter_mut().zip(&right) {
                        *sum = left.fma(*right, *sum);
                    }
                }
                will_write(walk.write);
                walk.weights = walk.weights.add(OUTPUTS);
                walk.write = walk.write.wrapping_add(walk.written);
            }
            for x in &mut x {
                *x = x.wrapping_add(pitch);
                will_read(x.wrapping_add(pitch)); // a channel is too few loads for the CPU to see the stride in time
            }
        }
    }
}
