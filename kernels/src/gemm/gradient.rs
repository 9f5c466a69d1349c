//! The gradient of a weight in f32, from f32 or bf16: `dw[i][tap][j] = sum over rows of y[row][i] * x[pixel(row, tap)][j]`.
//!
//! Rows are cut into chunks whose number follows from the shape alone; each chunk sums into its own copy of the gradient (the
//! first into the result) and the copies are added in order, so that results do not depend on threads. A unit is (chunk, some
//! taps, some of the outputs i), cut so that its part of the gradient stays in the second-level cache.
//!
//! The sum is over rows, so that a lane of bf16 holds values of two neighbouring rows: these are joined block by block.

use super::lines::{Lines, copies_lines, joined_taps};
use super::map::{Map, Run};
use super::operand::Operand;
use super::tile::{Factor, Outer, PIECE, Target};
use crate::simd::{Kernel, MAX_LANES, Vector};
use engine::parallel;
use std::ops::Range;

/// Rows whose sources and gradients are worked on at once.
const BLOCK_ROWS: usize = 128;
/// Elements of the gradient that a unit sums into.
const UNIT_SIZE: usize = 32 * 1024;
/// Units that there should be, for as many threads as there may be.
const UNITS: usize = 64;
/// Units below which threads would wait for one another.
const FEWEST_UNITS: usize = 8;
/// Rows below which a chunk is not worth its copy.
const CHUNK_ROWS: usize = 1024;
/// Inputs that fill the widest tile.
const FULL_TILE: usize = 48;
/// Elements that all copies together may take.
const COPIES_SIZE: usize = 16 << 20;

pub struct Gradient<'a, S> {
    pub map: &'a Map,
    pub y: &'a [S],
    pub m: usize,
    pub x: &'a [S],
    pub n: usize,
}

/// How the work is cut: follows from the shapes alone.
struct Cuts {
    chunks: usize,
    chunk: usize,
    taps: usize,
    outputs: usize,
    /// Lines of taps that are summed as one: several where a line has a single channel under a few taps, which would not fill a tile.
    lines: usize,
    /// Taps of the product and values of each: those of a line are one where lines are copied.
    all_taps: usize,
    n: usize,
    /// Whether the sums are laid out `[n][m]`: vectors run along outputs where there are fewer inputs than fill them.
    turned: bool,
}

/// What a thread reuses from unit to unit.
struct Scratch<S> {
    runs: Vec<Run>,
    y: Vec<*const f32>,
    x: Vec<*const f32>,
    lines: Lines<S>,
    /// Of rows joined to lanes: where the source is, if it is met, of each row; a row of zeros; and the lanes.
    sources: Vec<Option<usize>>,
    zeros: Vec<S>,
    y_lanes: Vec<f32>,
    x_lanes: Vec<f32>,
}

impl<S> Default for Scratch<S> {
    fn default() -> Self {
        Scratch {
            runs: vec![],
            y: vec![],
            x: vec![],
            lines: Lines::default(),
            sources: vec![],
            zeros: vec![],
            y_lanes: vec![],
            x_lanes: vec![],
        }
    }
}

impl<S: Operand> Gradient<'_, S> {
    /// Writes `dw`, `[m][taps][n]`.
    pub fn run(&self, dw: &mut [f32]) {
        let cuts = self.cuts();
        let size = dw.len();
        let mut turned = vec![0.0; if cuts.turned { size } else { 0 }];
        let first = if cuts.turned { &mut turned[..] } else { &mut *dw };
        let (tap_parts, output_parts) = (cuts.all_taps.div_ceil(cuts.taps), self.m.div_ceil(cuts.outputs));
        sum_chunks(first, cuts.chunks, |targets| {
            parallel::run_with(cuts.chunks * tap_parts * output_parts, Scratch::default, |scratch, unit| {
                let (chunk, t, o) =
                    (unit / output_parts / tap_parts, unit / output_parts % tap_parts, unit % output_parts);
                S::dispatch(Unit {
                    gradient: self,
                    cuts: &cuts,
                    rows: chunk * cuts.chunk..self.map.rows().min((chunk + 1) * cuts.chunk),
                    taps: t * cuts.taps..cuts.all_taps.min((t + 1) * cuts.taps),
                    outputs: o * cuts.outputs..self.m.min((o + 1) * cuts.outputs),
                    to: targets[chunk],
                    scratch,
                });
            });
        });
        if cuts.turned {
            for (i, row) in dw.chunks_exact_mut(cuts.all_taps * cuts.n).enumerate() {
                row.iter_mut().zip(turned[i..].iter().step_by(self.m)).for_each(|(to, &v)| *to = v);
            }
        }
    }

    fn cuts(&self) -> Cuts {
        let rows = self.map.rows();
        let lines = if self.has_pieces() { PIECE } else { 1 };
        let joined = lines * joined_taps(self.map, self.n);
        let (all_taps, n) = (self.map.taps() / joined, joined * self.n);
        // Few rows make few chunks: then the outputs are shared out.
        let parts = FEWEST_UNITS.div_ceil(rows.div_ceil(CHUNK_ROWS).max(1) * all_taps);
        let outputs = (UNIT_SIZE / n).min(self.m.div_ceil(parts)).next_multiple_of(FULL_TILE).min(self.m);
        let taps = (UNIT_SIZE / (outputs * n)).clamp(1, all_taps);
        let parts = all_taps.div_ceil(taps) * self.m.div_ceil(outputs);
        let (chunks, chunk) = cut_rows(rows, parts, self.m * all_taps * n);
        let turned = n < FULL_TILE && n < self.m;
        Cuts { chunks, chunk, lines, taps, outputs, all_taps, n, turned }
    }

    pub fn copies_lines(&self) -> bool {
        copies_lines(self.map, self.n)
    }

    /// Lanes that the widest vectors take for the sums of a row and a line of taps.
    pub fn lanes(&self) -> usize {
        let Cuts { turned, n, .. } = self.cuts();
        if turned { self.m.next_multiple_of(MAX_LANES) * n } else { self.m * n.next_multiple_of(MAX_LANES) }
    }

    /// Whether a row's values are few under a line of taps, and those under several lines are summed as pieces of one row.
    fn has_pieces(&self) -> bool {
        let fits = self.n == 1 && self.map.line_taps() == PIECE && self.map.taps().is_multiple_of(PIECE * PIECE);
        S::PER_LANE == 1 && self.copies_lines() && fits && self.m > PIECE * PIECE
    }
}

/// How many chunks rows are cut into, and rows of each, where a chunk makes `units` units and sums `size` elements.
pub fn cut_rows(rows: usize, units: usize, size: usize) -> (usize, usize) {
    let most = (COPIES_SIZE / size).max(1);
    let chunks = UNITS.div_ceil(units).min(rows.div_ceil(CHUNK_ROWS)).min(most).max(1);
    let chunk = rows.div_ceil(chunks);
    (rows.div_ceil(chunk), chunk)
}

/// The same for blocks that the rows are cut into: how many chunks, and blocks of each.
pub fn cut_blocks(blocks: usize, rows: usize, units: usize, size: usize) -> (usize, usize) {
    let (_, chunk_rows) = cut_rows(rows, units, size);
    let chunk = (chunk_rows * blocks).div_ceil(rows);
    (blocks.div_ceil(chunk), chunk)
}

/// Has `sum` write a gradient for each chunk, the first to `dw`, and adds them.
pub fn sum_chunks(dw: &mut [f32], chunks: usize, sum: impl FnOnce(&[Target<f32>])) {
    let size = dw.len();
    let mut copies = vec![0.0; (chunks - 1) * size];
    let mut targets = vec![Target(dw.as_mut_ptr())];
    targets.extend(copies.chunks_mut(size).map(|copy| Target(copy.as_mut_ptr())));
    sum(&targets);
    add_copies(dw, &copies);
}

/// Adds the copies to the first one, in order.
fn add_copies(dw: &mut [f32], copies: &[f32]) {
    const PART: usize = 4096;
    let size = dw.len();
    parallel::each(dw.chunks_mut(PART).enumerate(), |(i, to)| {
        for copy in copies.chunks_exact(size) {
            for (to, &v) in to.iter_mut().zip(&copy[i * PART..]) {
                *to += v;
            }
        }
    });
}

struct Unit<'a, 'b, S> {
    gradient: &'a Gradient<'a, S>,
    cuts: &'a Cuts,
    rows: Range<usize>,
    taps: Range<usize>,
    outputs: Range<usize>,
    to: Target<f32>,
    scratch: &'b mut Scratch<S>,
}

impl<S: Operand> Kernel for Unit<'_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let g = self.gradient;
        for start in self.rows.clone().step_by(BLOCK_ROWS) {
            let rows = start..self.rows.end.min(start + BLOCK_ROWS);
            let s = &mut *self.scratch;
            let next = g.map.distances(rows.start, rows.end).unwrap_or_default();
            s.y.clear();
            g.map.runs(rows.clone(), &mut s.runs);
            if self.cuts.lines > 1 {
                s.lines.copy_all(g.map, g.x, g.n, &s.runs);
            } else if g.copies_lines() {
                s.lines.copy(g.map, g.x, g.n, &s.runs);
            }
            if S::PER_LANE > 1 {
                self.join_y(&rows);
            }
            for tap in self.taps.clone() {
                match S::PER_LANE {
                    1 => self.list(&rows, tap),
                    _ => self.join_x(&rows, tap),
                }
                let first = start == self.rows.start;
                if first || !self.scratch.x.is_empty() {
                    // SAFETY: `list` made both lists equally long.
                    unsafe { self.outer(next, tap, !first).run::<S, V>() }
                }
            }
        }
    }
}

impl<S: Operand> Unit<'_, '_, S> {
    /// The rows that meet the source under `tap`: pointers to both factors.
    #[inline(always)]
    fn list(&mut self, rows: &Range<usize>, tap: usize) {
        let (g, s) = (self.gradient, &mut *self.scratch);
        s.x.clear();
        // SAFETY of the pointers: the map names pixels of the source, and rows are rows of y. A value is a lane.
        let y = g.y[rows.start * g.m + self.outputs.start..].as_ptr().cast::<f32>();
        if g.copies_lines() {
            let starts = s.lines.starts(tap * self.cuts.lines);
            for (run, start) in s.runs.iter().zip(starts) {
                let Some(start) = start else { continue };
                let (x, step) = (s.lines.values()[*start..].as_ptr().cast::<f32>(), s.lines.step());
                s.x.extend((0..run.len()).map(|i| unsafe { x.add(i * step) }));
            }
            // Under most lines of taps all rows of the block are met: then they stay listed.
            if s.x.len() < rows.len() || s.y.len() < rows.len() {
                s.y.clear();
                for (run, _) in s.runs.iter().zip(starts).filter(|(_, start)| start.is_some()) {
                    s.y.extend((run.row..run.row + run.len()).map(|i| unsafe { y.add(i * g.m) }));
                }
            }
            return;
        }
        s.y.clear();
        for met in s.runs.iter().filter_map(|run| g.map.met(run, tap)) {
            let x = g.x[met.source * g.n..].as_ptr().cast::<f32>();
            s.x.extend((0..met.len).map(|i| unsafe { x.add(i * met.step * g.n) }));
            s.y.extend((met.first..met.first + met.len).map(|i| unsafe { y.add(i * g.m) }));
        }
    }

    /// Joins the rows of y: `[rows / PER_LANE, outputs]`.
    #[inline(always)]
    fn join_y(&mut self, rows: &Range<usize>) {
        let (g, s, m) = (self.gradient, &mut *self.scratch, self.outputs.len());
        let row = |row: usize| &g.y[row * g.m + self.outputs.start..][..m];
        s.zeros.resize(m.max(self.cuts.n), S::zeroed());
        s.y_lanes.resize(s.y_lanes.len().max(S::lanes(rows.len()) * m), 0.0);
        for (lanes, first) in s.y_lanes.chunks_exact_mut(m).zip(rows.clone().step_by(S::PER_LANE)) {
            let second = first + 1;
            S::join([row(first), if second < rows.end { row(second) } else { &s.zeros[..m] }], lanes);
        }
    }

    /// Joins the rows of x under `tap`, `[rows / PER_LANE, n]`, zero where there is none, and lists those that meet the source.
    #[inline(always)]
    fn join_x(&mut self, rows: &Range<usize>, tap: usize) {
        let (g, s, n) = (self.gradient, &mut *self.scratch, self.cuts.n);
        s.sources.clear();
        if g.copies_lines() {
            for (run, start) in s.runs.iter().zip(s.lines.starts(tap)) {
                s.sources.extend((0..run.len()).map(|i| start.map(|start| start + i * s.lines.step())));
            }
        } else {
            s.sources.resize(rows.len(), None);
            for met in s.runs.iter().filter_map(|run| g.map.met(run, tap)) {
                for (i, source) in s.sources[met.first..][..met.len].iter_mut().enumerate() {
                    *source = Some((met.source + i * met.step) * n);
                }
            }
        }
        let values = if g.copies_lines() { s.lines.values() } else { g.x };
        let row = |at: &Option<usize>| at.map_or(&s.zeros[..n], |at| &values[at..][..n]);
        s.x.clear();
        s.y.clear();
        s.x_lanes.resize(s.x_lanes.len().max(S::lanes(rows.len()) * n), 0.0);
        let y_lanes = s.y_lanes.chunks_exact(self.outputs.len());
        for ((pair, lanes), y) in s.sources.chunks(S::PER_LANE).zip(s.x_lanes.chunks_exact_mut(n)).zip(y_lanes) {
            if pair.iter().any(Option::is_some) {
                S::join([row(&pair[0]), row(pair.get(1).unwrap_or(&None))], lanes);
                s.x.push(lanes.as_ptr());
                s.y.push(y.as_ptr());
            }
        }
    }

    /// The arguments of the tap's sums, for rows from which those of the next block are so many pixels of both factors away.
    #[inline(always)]
    fn outer(&self, [source, target]: [usize; 2], tap: usize, add: bool) -> Outer {
        let (g, s, n, outputs) = (self.gradient, &*self.scratch, self.cuts.n, &self.outputs);
        // What is copied or joined is read in order, which the CPU foresees.
        let (in_place, x_in_place) = (S::PER_LANE == 1, S::PER_LANE == 1 && !g.copies_lines());
        let values = |pixels: usize, channels: usize, there| if there { pixels.wrapping_mul(channels) } else { 0 };
        let ahead = [values(target, g.m, in_place), values(source, g.n, x_in_place)];
        let apart = (self.cuts.lines > 1).then(|| s.lines.apart());
        let y = Factor { rows: s.y.as_ptr(), values: outputs.len(), ahead: ahead[0], apart: None };
        let x = Factor { rows: s.x.as_ptr(), values: n, ahead: ahead[1], apart };
        // SAFETY: the unit's outputs and the tap are in the gradient.
        let at = |place: usize| unsafe { self.to.0.add(place) };
        let c_step = self.cuts.all_taps * n;
        let outer = Outer { y, x, rows: s.x.len(), c: at(outputs.start * c_step + tap * n), c_step, add, turn: tap };
        if !self.cuts.turned {
            return outer;
        }
        Outer { y: x, x: y, c: at(tap * n * g.m + outputs.start), c_step: g.m, ..outer }
    }
}
