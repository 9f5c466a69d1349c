//! Rows times weights, f32 or bf16: `target[row][n] = bias[n] + sum over tap, k of source[pixel(row, tap)][k] * weight[tap][k][n]`.
//!
//! Rows are gathered through pointers, so no patch matrix is ever written (except for a handful of source channels, where a row
//! of all taps is shorter than the pointers to it). The work is cut into units of (row block, weight panels). Inside a unit the
//! order is step (a tap, or some small taps, or a part of the channels), panel, tile: a step's source rows and one panel stay
//! in the first-level cache. Rows that a tap leaves in the padding are left out of the step's list.
//!
//! Every output is one chain of sums in the order of the steps, whatever the units are: results do not depend on threads. Sums are
//! f32: those of a unit with bf16 outputs are its own until they are rounded.

use super::map::{Map, Met, Run};
use super::operand::Operand;
use super::pack::{self, Packing, Weight};
use super::rows::{self, Rows};
use super::tile::{MAX_ROWS, Strip, Target, prefetch};
use crate::simd::{self, Kernel, Vector};
use engine::{Element, Result, Tensor, parallel};
use std::ops::Range;

/// Rows up to which weights are packed panel by panel where they are used, rather than once for all units.
const FEW_ROWS: usize = 512;
/// Most rows of a block: their channels (of one tap) and outputs stay near.
const BLOCK_ROWS: usize = 192;
/// Lanes of channels of a step of one tap. Each step is summed on its own and then added to the outputs: with steps this short the
/// rounding error of a long sum stays near that of its last additions.
const STEP_LANES: usize = 128;
/// The same for a step of several taps of few channels.
const SHARED_STEP_CHANNELS: usize = 24;
/// Source channels from which each tap is a step of its own.
const LONE_TAP_CHANNELS: usize = 48;
/// Source channels below which rows are copied, all taps side by side.
pub const FEW_CHANNELS: usize = 8;

pub struct Product<'a, S> {
    pub map: &'a Map,
    pub source: &'a [S],
    pub channels: usize,
    pub weight: Weight<'a, S>,
    pub bias: Option<&'a [f32]>,
    pub n: usize,
}

/// Part of the sum: these taps of the map, these channels of each.
#[derive(Clone, Debug)]
struct Step {
    taps: Range<usize>,
    channels: Range<usize>,
}

/// What a thread reuses from unit to unit.
struct Scratch<S> {
    runs: Vec<Run>,
    outputs: Vec<*mut S>,
    /// Where each row is summed: its output, which is of S where it is written at once, or a row of `sums`.
    targets: Vec<*mut f32>,
    sums: Vec<f32>,
    a: Vec<*const S>,
    c: Vec<*mut f32>,
    /// Rows in `a` and `c`, without those that fill up the last tile.
    listed: usize,
    weights: Vec<f32>,
    wide: Vec<f32>,
    patches: Vec<S>,
    spare: Vec<f32>,
}

struct Plan<'a, S> {
    width: usize,
    steps: Vec<Step>,
    taps: Vec<usize>,
    packed: Option<&'a [f32]>,
    zeros: Vec<S>,
    /// The bias, or zero, for each output.
    start: Vec<f32>,
}

impl<S> Default for Scratch<S> {
    fn default() -> Self {
        Scratch {
            runs: vec![],
            outputs: vec![],
            targets: vec![],
            sums: vec![],
            a: vec![],
            c: vec![],
            listed: 0,
            weights: vec![],
            wide: vec![],
            patches: vec![],
            spare: vec![],
        }
    }
}

impl<S: Operand> Product<'_, S> {
    /// Writes the target pixels that the map's rows name.
    pub fn run(&self, target: &mut [S]) -> Result<()> {
        if let Some(few) = self.dot_products() {
            few.run(target);
            return Ok(());
        }
        let (rows, width, threads) = (self.map.rows(), pack::width(), rayon::current_num_threads());
        let panels = self.n.div_ceil(width);
        let taps: Vec<usize> = (0..self.map.taps()).map(|t| self.map.kernel_tap(t)).collect();
        let few = rows <= FEW_ROWS;
        let packed = if few { None } else { Some(self.packing(width, &taps, 0..self.channels).all()?) };
        let packed = packed.as_ref().map(Tensor::as_slice).transpose()?;
        let steps = self.steps();
        let zeros = vec![S::zeroed(); self.channels * if self.gathers() { taps.len() } else { 1 }];
        let start = self.bias.map_or(vec![0.0; self.n], <[f32]>::to_vec);
        let plan = Plan { width, steps, taps, packed, zeros, start };

        let blocks = if few { 1 } else { rows.div_ceil(BLOCK_ROWS) };
        let block = rows.div_ceil(blocks).next_multiple_of(MAX_ROWS);
        let blocks = rows.div_ceil(block);
        let splits = (4 * threads).div_ceil(blocks).min(panels);
        let share = panels.div_ceil(splits).min(if few { 4 } else { panels });
        let splits = panels.div_ceil(share);
        let to = Target(target.as_mut_ptr());
        parallel::run_with(blocks * splits, Scratch::default, |scratch, i| {
            let (b, s) = (i / splits, i % splits);
            let rows = b * block..rows.min((b + 1) * block);
            let panels = s * share..panels.min((s + 1) * share);
            S::dispatch(Unit { product: self, plan: &plan, rows, panels, to, scratch });
        });
        Ok(())
    }

    /// The product as dot products, where there are few rows, one tap that all of them meet, and inputs side by side.
    fn dot_products(&self) -> Option<Rows<'_, S>> {
        let (map, k) = (self.map, self.channels);
        if map.rows() > rows::MOST_ROWS || map.taps() != 1 || self.weight.k != 1 || !k.is_multiple_of(S::PER_LANE) {
            return None;
        }
        let mut runs = Vec::new();
        map.runs(0..map.rows(), &mut runs);
        let (mut source, mut pixels) = (Vec::new(), Vec::new());
        for run in &runs {
            let met = map.met(run, 0).filter(|met| met.len == run.len())?;
            let (pixel, stride) = map.target(run);
            for i in 0..run.len() {
                source.extend_from_slice(&self.source[(met.source + i * met.step) * k..][..k]);
                pixels.push(pixel + i * stride);
                source.resize(pixels.len() * rows::row_stride::<S>(k), S::zeroed());
            }
        }
        let weight = &self.weight.data[map.kernel_tap(0) * self.weight.tap..];
        Some(Rows { source, channels: k, pixels, weight, stride: self.weight.n, bias: self.bias, n: self.n })
    }

    fn steps(&self) -> Vec<Step> {
        let (taps, channels) = (self.map.taps(), self.channels);
        if self.gathers() {
            return vec![Step { taps: 0..taps, channels: 0..channels }];
        }
        if channels >= LONE_TAP_CHANNELS {
            let parts = channels.div_ceil(STEP_LANES * S::PER_LANE);
            let share = channels.div_ceil(parts).next_multiple_of(S::PER_LANE);
            let part = |i: usize| i * share..channels.min((i + 1) * share);
            return (0..taps)
                .flat_map(|t| (0..parts).map(move |i| Step { taps: t..t + 1, channels: part(i) }))
                .collect();
        }
        let parts = (taps * channels).div_ceil(SHARED_STEP_CHANNELS).max(1);
        let share = taps.div_ceil(parts).max(1);
        (0..taps.div_ceil(share))
            .map(|i| Step { taps: i * share..taps.min((i + 1) * share), channels: 0..channels })
            .collect()
    }

    fn gathers(&self) -> bool {
        self.channels < FEW_CHANNELS && self.map.taps() > 1
    }

    /// Rows of a step's packed weights.
    fn step_lanes(&self, step: &Step) -> usize {
        match self.gathers() {
            true => S::lanes(step.taps.len() * step.channels.len()),
            false => step.taps.len() * S::lanes(step.channels.len()),
        }
    }

    fn packing<'b>(&'b self, width: usize, taps: &'b [usize], channels: Range<usize>) -> Packing<'b, S> {
        Packing { weight: &self.weight, n: self.n, width, taps, channels, joined: self.gathers() }
    }
}

/// The target's rows of one block and columns of some panels.
struct Unit<'a, 'b, S> {
    product: &'a Product<'a, S>,
    plan: &'a Plan<'a, S>,
    rows: Range<usize>,
    panels: Range<usize>,
    to: Target<S>,
    scratch: &'b mut Scratch<S>,
}

impl<S: Operand> Kernel for Unit<'_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        fetch_ahead(self.product.map, self.product.source, self.product.channels, &self.rows, &mut self.scratch.runs);
        self.product.map.runs(self.rows.clone(), &mut self.scratch.runs);
        let at_once = self.is_written_at_once();
        self.locate(at_once);
        if !at_once {
            self.start();
        }
        if self.product.gathers() {
            let (p, s) = (self.product, &mut *self.scratch);
            gather(p.map, p.source, p.channels, self.rows.len(), &s.runs, &mut s.patches);
        }
        for step in &self.plan.steps {
            if step.channels.start == 0 {
                self.list(step);
            }
            if self.scratch.listed == 0 {
                continue;
            }
            self.pack(step);
            for panel in self.panels.clone() {
                let strip = self.strip(step, panel, at_once);
                // SAFETY: `list` made both lists MAX_ROWS - 1 longer than the rows, and panels are `width` wide.
                unsafe { strip.run::<V>(self.scratch.listed) }
            }
        }
        if !at_once && S::PER_LANE > 1 {
            self.round();
        }
    }
}

impl<S: Operand> Unit<'_, '_, S> {
    /// Whether a single step meets every row, so that its tiles write the outputs rather than add to them.
    #[inline(always)]
    fn is_written_at_once(&self) -> bool {
        let p = self.product;
        let met = |run: &Run| p.map.met(run, 0).is_some_and(|met| met.len == run.len());
        match &self.plan.steps[..] {
            [step] => p.gathers() || step.taps.len() > 1 || self.scratch.runs.iter().all(met),
            _ => false,
        }
    }

    #[inline(always)]
    fn columns(&self) -> Range<usize> {
        self.panels.start * self.plan.width..self.product.n.min(self.panels.end * self.plan.width)
    }

    /// The first column of the targets' rows.
    #[inline(always)]
    fn first_column(&self, at_once: bool) -> usize {
        if at_once || S::PER_LANE == 1 { 0 } else { self.columns().start }
    }

    /// Finds where each of the block's rows is written, and where it is summed.
    #[inline(always)]
    fn locate(&mut self, at_once: bool) {
        let (n, columns) = (self.product.n, self.columns().len());
        let s = &mut *self.scratch;
        s.spare.resize(n, 0.0);
        s.outputs.clear();
        s.targets.clear();
        for run in &s.runs {
            let (first, stride) = self.product.map.target(run);
            // SAFETY: the map names pixels of the target.
            s.outputs.extend((0..run.len()).map(|i| unsafe { self.to.0.add((first + i * stride) * n) }));
        }
        if at_once || S::PER_LANE == 1 {
            s.targets.extend(s.outputs.iter().map(|output| output.cast::<f32>()));
        } else {
            s.sums.resize(s.sums.len().max(self.rows.len() * columns), 0.0);
            s.targets.extend(s.sums.chunks_exact_mut(columns).take(self.rows.len()).map(<[f32]>::as_mut_ptr));
        }
    }

    /// The bias, or zero, in every place of the unit.
    #[inline(always)]
    fn start(&mut self) {
        let (columns, first) = (self.columns(), self.first_column(false));
        for &row in &self.scratch.targets {
            // SAFETY: this unit alone writes these columns of its rows.
            let row = unsafe { std::slice::from_raw_parts_mut(row.add(columns.start - first), columns.len()) };
            row.copy_from_slice(&self.plan.start[columns.clone()]);
        }
    }

    /// Rounds the sums to the outputs.
    #[inline(always)]
    fn round(&mut self) {
        let columns = self.columns();
        for (sums, output) in self.scratch.sums.chunks_exact(columns.len()).zip(&self.scratch.outputs) {
            // SAFETY: this unit alone writes these columns of its rows.
            let output = unsafe { std::slice::from_raw_parts_mut(output.add(columns.start), columns.len()) };
            simd::narrow(sums, output);
        }
    }

    /// The rows that take part in a step: pointers to their sources, tap by tap, and to their targets.
    #[inline(always)]
    fn list(&mut self, step: &Step) {
        let (p, s) = (self.product, &mut *self.scratch);
        let rows = self.rows.len();
        s.a.clear();
        s.c.clear();
        if p.gathers() {
            s.a.extend(s.patches.chunks_exact(p.map.taps() * p.channels).take(rows).map(<[S]>::as_ptr));
            s.c.extend(&s.targets);
        } else if step.taps.len() == 1 {
            for met in s.runs.iter().filter_map(|run| p.map.met(run, step.taps.start)) {
                let from = p.source[met.source * p.channels..].as_ptr();
                let step = met.step * p.channels;
                // SAFETY: the map names pixels of the source.
                s.a.extend((0..met.len).map(|i| unsafe { from.add(i * step) }));
                s.c.extend(&s.targets[met.first..met.first + met.len]);
            }
        } else {
            let padded = rows + MAX_ROWS - 1;
            s.a.resize(padded * step.taps.len(), self.plan.zeros.as_ptr());
            for (i, tap) in step.taps.clone().enumerate() {
                for met in s.runs.iter().filter_map(|run| p.map.met(run, tap)) {
                    let from = p.source[met.source * p.channels..].as_ptr();
                    for (j, a) in s.a[i * padded + met.first..][..met.len].iter_mut().enumerate() {
                        // SAFETY: as above.
                        *a = unsafe { from.add(j * met.step * p.channels) };
                    }
                }
            }
            s.c.extend(&s.targets);
        }
        s.listed = s.c.len();
        let padded = s.listed + MAX_ROWS - 1;
        s.a.resize(s.a.len().max(padded), self.plan.zeros.as_ptr());
        s.c.resize(padded, s.spare.as_mut_ptr());
    }

    /// Packs the step's weights, unless they are packed already.
    #[inline(always)]
    fn pack(&mut self, step: &Step) {
        if self.plan.packed.is_some() {
            return;
        }
        let (plan, s) = (self.plan, &mut *self.scratch);
        let size = self.product.step_lanes(step) * plan.width;
        s.weights.resize(s.weights.len().max(size * self.panels.len()), 0.0);
        let taps = &plan.taps[step.taps.clone()];
        let packing = self.product.packing(plan.width, taps, step.channels.clone());
        packing.panels(self.panels.clone(), &mut s.weights, &mut s.wide);
    }

    /// The arguments of one panel's tiles.
    #[inline(always)]
    fn strip(&self, step: &Step, panel: usize, at_once: bool) -> Strip<S> {
        let (p, plan, s) = (self.product, self.plan, &*self.scratch);
        let lanes = p.step_lanes(step);
        let b = match &plan.packed {
            Some(packed) if p.gathers() => &packed[panel * lanes * plan.width..],
            Some(packed) => {
                let row = (panel * plan.taps.len() + step.taps.start) * S::lanes(p.channels);
                &packed[(row + S::lanes(step.channels.start)) * plan.width..]
            }
            None => &s.weights[(panel - self.panels.start) * lanes * plan.width..],
        };
        // Copied rows hold all taps side by side, as one tap of many channels.
        let taps = step.taps.len();
        let (taps, channels) = if p.gathers() { (1, taps * p.channels) } else { (taps, step.channels.len()) };
        let col = panel * plan.width;
        Strip {
            a: s.a.as_ptr(),
            a_step: s.a.len() / taps,
            taps,
            k0: step.channels.start,
            channels,
            b: b.as_ptr(),
            width: plan.width,
            c: s.c.as_ptr(),
            start: at_once.then(|| plan.start[col..].as_ptr()),
            col: col - self.first_column(at_once),
            n: plan.width.min(p.n - col),
        }
    }
}

/// Prefetches what the block of rows after `rows` will be the first to read: its sources under the last tap.
#[inline(always)]
pub fn fetch_ahead<T>(map: &Map, source: &[T], channels: usize, rows: &Range<usize>, runs: &mut Vec<Run>) {
    let next = rows.end..map.rows().min(rows.end + rows.len());
    if map.taps() == 0 || channels < FEW_CHANNELS {
        return;
    }
    map.runs(next, runs);
    for met in runs.iter().filter_map(|run| map.met(run, map.taps() - 1)) {
        prefetch(&source[met.source * channels..][..((met.len - 1) * met.step + 1) * channels]);
    }
}

/// Copies the sources of a block's rows, all taps side by side, zero where a tap meets padding: `[rows][taps][channels]`.
#[inline(always)]
pub fn gather<T: Element>(map: &Map, source: &[T], channels: usize, rows: usize, runs: &[Run], patches: &mut Vec<T>) {
    let size = map.taps() * channels;
    patches.clear();
    patches.resize(rows * size, T::zeroed());
    // Values of `taps` neighbouring taps from `tap` on, for the given ones of the rows that `met` has.
    let mut put = |met: &Met, rows: Range<usize>, tap: usize, taps: usize| {
        if rows.is_empty() {
            return;
        }
        let (step, len) = (met.step * channels, taps * channels);
        let from =
            &source[(met.source + (rows.start - met.first) * met.step) * channels..][..(rows.len() - 1) * step + len];
        let to = &mut patches[rows.start * size + tap * channels..][..(rows.len() - 1) * size + len];
        match len {
            1 => copy_rows::<1, T>(from, step, to, size, rows.len()),
            2 => copy_rows::<2, T>(from, step, to, size, rows.len()),
            3 => copy_rows::<3, T>(from, step, to, size, rows.len()),
            _ => (0..rows.len()).for_each(|i| to[i * size..][..len].copy_from_slice(&from[i * step..][..len])),
        }
    };
    let line = map.line_taps();
    for run in runs {
        for first in (0..map.taps()).step_by(line) {
            let mets = || (first..first + line).map(|tap| (tap, map.met(run, tap).unwrap_or_default()));
            // Rows that meet the source under all taps of the line are copied a line at a time.
            let start = mets().map(|(_, met)| met.first).max().unwrap_or(0);
            let end = mets().map(|(_, met)| met.first + met.len).min().unwrap_or(0).max(start);
            for (tap, met) in mets() {
                let met_end = met.first + met.len;
                put(&met, met.first..start.min(met_end), tap, 1);
                put(&met, end.max(met.first)..met_end, tap, 1);
                if tap == first {
                    put(&met, start..end, tap, line);
                }
            }
        }
    }
}

/// Copies `rows` rows of so few values that a call for each would take longer.
#[inline(always)]
fn copy_rows<const LEN: usize, T: Copy>(from: &[T], from_step: usize, to: &mut [T], to_step: usize, rows: usize) {
    for row in 0..rows {
        let from = &from[row * from_step..][..LEN];
        to[row * to_step..][..LEN].copy_from_slice(from);
    }
}
