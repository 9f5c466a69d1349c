//! Rows times weights, f32 or bf16: `target[row][n] = bias[n] + sum over tap, k of source[pixel(row, tap)][k] * weight[tap][k][n]`.
//!
//! Rows are gathered through pointers, so no patch matrix is ever written. The work is cut into units of (row block, weight
//! panels). Inside a unit the order is step (a tap, or a part of its channels), panel, tile: a step's source rows and one panel
//! stay in the first-level cache. Rows that a tap leaves in the padding are left out of the step's list. Where a tap has few
//! channels, the block's source lines are copied with their padding ([`Lines`]), and a step is some lines of taps.
//!
//! Every output is one chain of sums in the order of the steps, whatever the units are: results do not depend on threads. Sums are
//! f32: those of a unit with bf16 outputs are its own until they are rounded.

use super::lines::{Lines, copies_lines, joined_taps};
use super::map::{Map, Run};
use super::operand::Operand;
use super::pack::{self, Packing, Weight};
use super::rows::{self, Rows};
use super::tile::{Ahead, MAX_ROWS, Strip, Target};
use crate::simd::{self, Kernel, Vector};
use engine::{Result, Tensor, parallel};
use std::ops::Range;

/// Rows up to which weights are packed panel by panel where they are used, rather than once for all units.
const FEW_ROWS: usize = 512;
/// Most rows of a block: their channels (of one tap) and outputs stay near.
const BLOCK_ROWS: usize = 128;
/// Lanes of a step. Each step is summed on its own and then added to the outputs: with steps this short the rounding error of a
/// long sum stays near that of its last additions.
const STEP_LANES: usize = 128;

#[derive(Clone, Copy)]
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
pub struct Step {
    pub taps: Range<usize>,
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
    lines: Lines<S>,
    spare: Vec<f32>,
}

/// How a product is computed.
struct Plan<'a, S> {
    product: &'a Product<'a, S>,
    /// Columns of a panel.
    width: usize,
    cut: Cut,
    /// Whether it is the first to read its sources.
    leads: bool,
    steps: Vec<Step>,
    taps: Vec<usize>,
    packed: Option<&'a [f32]>,
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
            lines: Lines::default(),
            spare: vec![],
        }
    }
}

/// Writes the target pixels that the rows of all products name. Products take turns, block by block: blocks of the same number read
/// the same sources or write neighbouring targets.
pub fn run<S: Operand>(products: &[Product<S>], target: &mut [S]) -> Result<()> {
    let packed = products.iter().map(|product| product.pack()).collect::<Result<Vec<_>>>()?;
    let mut plans = Vec::new();
    for (product, packed) in products.iter().zip(&packed) {
        match product.few_rows() {
            Some(few) => few.run(target),
            None => {
                let packed = packed.as_ref().map(Tensor::as_slice).transpose()?;
                plans.push(product.plan(packed, plans.is_empty()));
            }
        }
    }
    let to = Target(target.as_mut_ptr());
    take_turns(
        &plans,
        |plan| plan.cut.units(),
        Scratch::default,
        |scratch, which, unit| {
            S::dispatch(plans[which].unit(unit, to, scratch));
        },
    );
    Ok(())
}

/// How a product's rows and panels are shared out: a unit is a block of rows and some panels.
pub struct Cut {
    rows: usize,
    block: usize,
    pub blocks: usize,
    panels: usize,
    /// Panels of a unit, and how many units share a block.
    share: usize,
    splits: usize,
}

impl Cut {
    /// Blocks of whole `multiple`s of rows, `blocks` of them at most; units of `most` panels at most, and some for each thread.
    pub fn new(rows: usize, blocks: usize, multiple: usize, panels: usize, most: usize) -> Cut {
        let block = rows.div_ceil(blocks).next_multiple_of(multiple);
        let blocks = rows.div_ceil(block);
        let splits = (4 * rayon::current_num_threads()).div_ceil(blocks).min(panels);
        let share = panels.div_ceil(splits).min(most);
        Cut { rows, block, blocks, panels, share, splits: panels.div_ceil(share) }
    }

    pub fn units(&self) -> usize {
        self.blocks * self.splits
    }

    /// Rows and panels of unit `i`.
    pub fn unit(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let (block, split) = (i / self.splits, i % self.splits);
        let rows = block * self.block..self.rows.min((block + 1) * self.block);
        (rows, split * self.share..self.panels.min((split + 1) * self.share))
    }
}

/// `body(kept, which plan, which of its units)` for all of them: a unit of each plan, then the next of each.
pub fn take_turns<P: Sync, S>(
    plans: &[P],
    units: impl Fn(&P) -> usize + Sync,
    make: impl Fn() -> S + Sync,
    body: impl Fn(&mut S, usize, usize) + Sync,
) {
    let most = plans.iter().map(&units).max().unwrap_or(0);
    parallel::run_with(most * plans.len(), make, |kept, i| {
        let (which, unit) = (i % plans.len(), i / plans.len());
        if unit < units(&plans[which]) {
            body(kept, which, unit);
        }
    });
}

impl<S: Operand> Product<'_, S> {
    pub fn has_few_rows(&self) -> bool {
        self.map.rows() <= FEW_ROWS
    }

    /// Positions of the taps in the weight.
    pub fn taps(&self) -> Vec<usize> {
        (0..self.map.taps()).map(|t| self.map.kernel_tap(t)).collect()
    }

    /// The weights for all units, unless each packs its own.
    fn pack(&self) -> Result<Option<Tensor>> {
        if self.has_few_rows() {
            return Ok(None);
        }
        self.packing(pack::width(), &self.taps(), 0..self.channels).all().map(Some)
    }

    fn plan<'a>(&'a self, packed: Option<&'a [f32]>, leads: bool) -> Plan<'a, S> {
        let (rows, width, few) = (self.map.rows(), pack::width(), self.has_few_rows());
        let panels = self.n.div_ceil(width);
        let blocks = if few { 1 } else { rows.div_ceil(BLOCK_ROWS) };
        let cut = Cut::new(rows, blocks, MAX_ROWS, panels, if few { 4 } else { panels });
        Plan {
            product: self,
            width,
            cut,
            leads,
            steps: self.steps(),
            taps: self.taps(),
            packed,
            start: self.bias.map_or(vec![0.0; self.n], <[f32]>::to_vec),
        }
    }

    /// The product with its weights read in place, where there are few rows, one tap that all of them meet, and inputs or outputs side
    /// by side.
    pub fn few_rows(&self) -> Option<Rows<'_, S>> {
        let (map, k, steps) = (self.map, self.channels, [self.weight.k, self.weight.n]);
        let in_place = steps[0] == 1 && k.is_multiple_of(S::PER_LANE) || steps[0] != 1 && steps[1] == 1;
        if map.rows() > rows::MOST_ROWS || map.taps() != 1 || !in_place {
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
        Some(Rows { source, channels: k, pixels, weight, steps, bias: self.bias, n: self.n })
    }

    pub fn steps(&self) -> Vec<Step> {
        let (joined, channels) = (self.joined(), self.channels);
        let lines = self.map.taps() / joined;
        if self.joins_lines() {
            let share = (STEP_LANES / S::lanes(joined * channels)).clamp(1, lines);
            let taps = |i: usize| i * share * joined..lines.min((i + 1) * share) * joined;
            return (0..lines.div_ceil(share)).map(|i| Step { taps: taps(i), channels: 0..channels }).collect();
        }
        let parts = channels.div_ceil(STEP_LANES * S::PER_LANE);
        let share = channels.div_ceil(parts.max(1)).next_multiple_of(S::PER_LANE);
        let part = |i: usize| i * share..channels.min((i + 1) * share);
        (0..lines).flat_map(|t| (0..parts).map(move |i| Step { taps: t..t + 1, channels: part(i) })).collect()
    }

    pub fn copies_lines(&self) -> bool {
        copies_lines(self.map, self.channels)
    }

    /// Whether several lines of taps may be a step: where all rows take part in each.
    fn joins_lines(&self) -> bool {
        let few = self.map.taps() > 1 && S::lanes(self.channels) <= STEP_LANES;
        self.copies_lines() || few && self.map.has_no_padding()
    }

    /// Taps that are summed as one of more channels.
    fn joined(&self) -> usize {
        joined_taps(self.map, self.channels)
    }

    /// Rows of a step's packed weights.
    fn step_lanes(&self, step: &Step) -> usize {
        step.taps.len() / self.joined() * S::lanes(self.joined() * step.channels.len())
    }

    pub fn packing<'b>(&'b self, width: usize, taps: &'b [usize], channels: Range<usize>) -> Packing<'b, S> {
        Packing { weight: &self.weight, n: self.n, width, taps, channels, joined: self.joined() }
    }
}

/// Pointers for a last tile that is not full: to some row, whose sums are dropped.
fn fill_up<S>(rows: &mut Vec<*const S>) {
    if let Some(&first) = rows.first() {
        rows.resize(rows.len() + MAX_ROWS - 1, first);
    }
}

impl<S> Plan<'_, S> {
    fn unit<'a>(&'a self, i: usize, to: Target<S>, scratch: &'a mut Scratch<S>) -> Unit<'a, 'a, S> {
        let ((rows, panels), product) = (self.cut.unit(i), self.product);
        let next = product.map.distances(rows.start, rows.end).unwrap_or_default();
        let next = [next[0].wrapping_mul(product.channels), next[1].wrapping_mul(product.n)];
        Unit { plan: self, rows, panels, next, to, scratch }
    }
}

/// The target's rows of one block and columns of some panels.
struct Unit<'a, 'b, S> {
    plan: &'a Plan<'a, S>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// Values between what the block reads and writes and what the next one does.
    next: [usize; 2],
    to: Target<S>,
    scratch: &'b mut Scratch<S>,
}

impl<S: Operand> Kernel for Unit<'_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        self.plan.product.map.runs(self.rows.clone(), &mut self.scratch.runs);
        let at_once = self.is_written_at_once();
        self.locate(at_once);
        if !at_once {
            self.start();
        }
        if self.plan.product.copies_lines() {
            let (p, s) = (self.plan.product, &mut *self.scratch);
            s.lines.copy_all(p.map, p.source, p.channels, &s.runs);
        }
        for step in &self.plan.steps {
            if step.channels.start == 0 {
                self.list(step);
            }
            if self.scratch.listed == 0 {
                continue;
            }
            self.pack::<V>(step);
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
        let p = self.plan.product;
        let met = |run: &Run| p.map.met(run, 0).is_some_and(|met| met.len == run.len());
        match &self.plan.steps[..] {
            [_] => p.joins_lines() || self.scratch.runs.iter().all(met),
            _ => false,
        }
    }

    #[inline(always)]
    fn columns(&self) -> Range<usize> {
        self.panels.start * self.plan.width..self.plan.product.n.min(self.panels.end * self.plan.width)
    }

    /// The first column of the targets' rows.
    #[inline(always)]
    fn first_column(&self, at_once: bool) -> usize {
        if at_once || S::PER_LANE == 1 { 0 } else { self.columns().start }
    }

    /// Finds where each of the block's rows is written, and where it is summed.
    #[inline(always)]
    fn locate(&mut self, at_once: bool) {
        let (n, columns) = (self.plan.product.n, self.columns().len());
        let s = &mut *self.scratch;
        s.spare.resize(n, 0.0);
        s.outputs.clear();
        s.targets.clear();
        for run in &s.runs {
            let (first, stride) = self.plan.product.map.target(run);
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

    /// The rows that take part in a step: pointers to their sources, tap by tap, and to their targets. Of copied lines the pointers
    /// under the first of the step.
    #[inline(always)]
    fn list(&mut self, step: &Step) {
        let (p, s) = (self.plan.product, &mut *self.scratch);
        s.a.clear();
        s.c.clear();
        if p.copies_lines() {
            let starts = s.lines.starts(step.taps.start / p.joined());
            for (run, start) in s.runs.iter().zip(starts.iter().flatten()) {
                let (from, step) = (s.lines.values()[*start..].as_ptr(), s.lines.step());
                // SAFETY: a piece has the values of all rows of its run.
                s.a.extend((0..run.len()).map(|i| unsafe { from.add(i * step) }));
            }
            s.c.extend(&s.targets);
            fill_up(&mut s.a);
        } else {
            for tap in step.taps.clone() {
                s.c.clear();
                for met in s.runs.iter().filter_map(|run| p.map.met(run, tap)) {
                    let from = p.source[met.source * p.channels..].as_ptr();
                    let step = met.step * p.channels;
                    // SAFETY: the map names pixels of the source.
                    s.a.extend((0..met.len).map(|i| unsafe { from.add(i * step) }));
                    s.c.extend(&s.targets[met.first..met.first + met.len]);
                }
                fill_up(&mut s.a);
            }
        }
        s.listed = s.c.len();
        s.c.resize(s.listed + MAX_ROWS - 1, s.spare.as_mut_ptr());
    }

    /// Packs the step's weights, unless they are packed already.
    #[inline(always)]
    fn pack<V: Vector>(&mut self, step: &Step) {
        if self.plan.packed.is_some() {
            return;
        }
        let (plan, s) = (self.plan, &mut *self.scratch);
        let size = self.plan.product.step_lanes(step) * plan.width;
        s.weights.resize(s.weights.len().max(size * self.panels.len()), 0.0);
        let taps = &plan.taps[step.taps.clone()];
        let packing = self.plan.product.packing(plan.width, taps, step.channels.clone());
        packing.panels::<V>(self.panels.clone(), &mut s.weights, &mut s.wide);
    }

    /// What the tiles of a panel ask for: their part of the next block's sources, where they are the first to read theirs, and of its
    /// targets, where they are the last to write theirs.
    #[inline(always)]
    fn ahead(&self, step: &Step, panel: usize, at_once: bool) -> Ahead {
        let (p, map, [source, target]) = (self.plan.product, self.plan.product.map, self.next);
        let mut ahead = Ahead::default();
        let first = self.plan.leads && panel == self.panels.start && map.leads(step.taps.start);
        if source > 0 && first && !p.copies_lines() {
            let before = step.taps.start % map.line_taps() * p.channels + step.channels.start;
            ahead.read = source.wrapping_add((MAX_ROWS - 1) * before);
        }
        let last = step.taps.end == map.taps() && step.channels.end == p.channels;
        if target > 0 && last && (at_once || S::PER_LANE == 1) {
            let behind = (MAX_ROWS - 1) * map.turn() * p.n + MAX_ROWS * panel * self.plan.width;
            ahead.write = target.wrapping_add(behind);
            ahead.written = (MAX_ROWS * self.plan.width).div_ceil(p.step_lanes(step).max(1));
        }
        ahead
    }

    /// The arguments of one panel's tiles.
    #[inline(always)]
    fn strip(&self, step: &Step, panel: usize, at_once: bool) -> Strip<S> {
        let (p, plan, s) = (self.plan.product, self.plan, &*self.scratch);
        let (lanes, joined, lines) = (p.step_lanes(step), p.joined(), p.copies_lines());
        let b = match &plan.packed {
            Some(packed) => {
                let group = panel * (plan.taps.len() / joined) + step.taps.start / joined;
                &packed[(group * S::lanes(joined * p.channels) + S::lanes(step.channels.start)) * plan.width..]
            }
            None => &s.weights[(panel - self.panels.start) * lanes * plan.width..],
        };
        let taps = step.taps.len() / joined;
        let col = panel * plan.width;
        Strip {
            a: s.a.as_ptr(),
            a_step: if lines { 0 } else { s.a.len() / taps },
            apart: if lines { s.lines.apart() } else { 0 },
            taps,
            k0: step.channels.start,
            channels: joined * step.channels.len(),
            b: b.as_ptr(),
            width: plan.width,
            c: s.c.as_ptr(),
            start: at_once.then(|| plan.start[col..].as_ptr()),
            col: col - self.first_column(at_once),
            n: plan.width.min(p.n - col),
            ahead: self.ahead(step, panel, at_once),
        }
    }
}
