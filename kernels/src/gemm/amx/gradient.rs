//! The gradient of a weight, as [`crate::gemm::gradient`] sums it with vectors: `dw[i][tap][j] = sum over rows of y[row][i] *
//! x[pixel(row, tap)][j]`, from bf16 in f32.
//!
//! The sum is over rows, so that tiles are columns of y, which are transposed, and pairs of rows of x. Rows are cut into chunks, each
//! with its own copy of the gradient, and the copies are added in order. A unit is a chunk, some parts of the taps and some outputs.

use super::gather::{Gathered, Part, Source};
use super::tiles::{LANES, ROWS, Sum, Tiles, VALUES};
use crate::gemm::gradient::{Gradient, cut_rows, sum_chunks};
use crate::gemm::map::Run;
use crate::gemm::operand::Operand;
use crate::gemm::tile::Target;
use crate::simd::{self, Kernel, SIDE, Vector};
use engine::{bf16, parallel};
use std::ops::Range;

/// Rows that are summed between two visits to the gradient.
const BLOCK_ROWS: usize = 512;
/// Rows of x that are gathered before they are joined in pairs.
const FEW_ROWS: usize = 32;
/// Most outputs of a unit, and elements of the gradient that it sums into.
const UNIT_OUTPUTS: usize = 192;
const UNIT_SIZE: usize = 64 * 1024;

/// How the work is cut: follows from the shapes alone.
struct Cuts {
    chunks: usize,
    chunk: usize,
    /// Parts of a unit, and its outputs.
    share: usize,
    outputs: usize,
    parts: Vec<Part>,
}

/// What a thread reuses from unit to unit.
#[derive(Default)]
struct Scratch {
    runs: Vec<Run>,
    rows: Gathered,
    /// Pairs of rows of y, then of x: `[rows / 2][columns]`; y with rows and columns exchanged: `[outputs][rows / 2]`.
    y_pairs: Vec<f32>,
    x_pairs: Vec<f32>,
    y: Vec<f32>,
    /// `[outputs][values of the unit's parts]`, each up to whole tiles.
    sums: Vec<f32>,
}

/// Writes `dw`, `[m][taps][n]`.
pub fn weight_gradient(gradient: &Gradient<bf16>, dw: &mut [f32]) {
    assert!(simd::has_tiles());
    let cuts = Cuts::new(gradient);
    let (part_units, output_units) = (cuts.parts.len().div_ceil(cuts.share), gradient.m.div_ceil(cuts.outputs));
    sum_chunks(dw, cuts.chunks, |targets| {
        parallel::run_with(cuts.chunks * part_units * output_units, Scratch::default, |scratch, unit| {
            let (chunk, p, o) =
                (unit / output_units / part_units, unit / output_units % part_units, unit % output_units);
            let unit = Unit {
                gradient,
                parts: &cuts.parts[p * cuts.share..cuts.parts.len().min((p + 1) * cuts.share)],
                rows: chunk * cuts.chunk..gradient.map.rows().min((chunk + 1) * cuts.chunk),
                outputs: o * cuts.outputs..gradient.m.min((o + 1) * cuts.outputs),
                to: targets[chunk],
                scratch,
            };
            // SAFETY: tiles are here.
            unsafe { simd::dispatch_tiles(unit) }
        });
    });
}

impl Cuts {
    fn new(g: &Gradient<bf16>) -> Cuts {
        let (rows, parts) = (g.map.rows(), Part::all(g.map, g.n));
        let outputs = g.m.div_ceil(g.m.div_ceil(UNIT_OUTPUTS)).next_multiple_of(ROWS);
        let largest = parts.iter().map(Part::values).max().unwrap_or(1);
        let share = (UNIT_SIZE / (outputs * largest)).clamp(1, parts.len());
        let units = parts.len().div_ceil(share) * g.m.div_ceil(outputs);
        let (chunks, chunk) = cut_rows(rows, units, g.m * g.map.taps() * g.n);
        Cuts { chunks, chunk, share, outputs, parts }
    }
}

/// The sums over one chunk of rows of some outputs and of some parts of the taps and their channels.
struct Unit<'a> {
    gradient: &'a Gradient<'a, bf16>,
    parts: &'a [Part],
    rows: Range<usize>,
    outputs: Range<usize>,
    to: Target<f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let size = self.outputs.len().next_multiple_of(ROWS) * self.columns();
        self.scratch.sums.resize(self.scratch.sums.len().max(size), 0.0);
        // SAFETY: this runs at a level with tiles only.
        let tiles = unsafe { Tiles::new() };
        for start in self.rows.clone().step_by(BLOCK_ROWS) {
            let rows = start..self.rows.end.min(start + BLOCK_ROWS);
            self.transpose_y::<V>(&rows);
            let mut column = 0;
            for part in self.parts {
                self.join_x::<V>(&rows, part);
                self.multiply::<V>(&rows, part, column, start > self.rows.start, &tiles);
                column += columns(part);
            }
        }
        drop(tiles);
        self.write();
    }
}

/// Values of a part, up to whole tiles.
fn columns(part: &Part) -> usize {
    part.values().next_multiple_of(LANES)
}

/// Pairs of so many rows, up to whole tiles.
fn pairs(rows: &Range<usize>) -> usize {
    rows.len().next_multiple_of(VALUES) / 2
}

impl Unit<'_> {
    /// Values between rows of the sums.
    #[inline(always)]
    fn columns(&self) -> usize {
        self.parts.iter().map(columns).sum()
    }

    /// Lanes between rows of the transposed y: an odd number of lines of the caches, as for [`Gathered`].
    #[inline(always)]
    fn y_step(&self, rows: &Range<usize>) -> usize {
        ((pairs(rows) / LANES) | 1) * LANES
    }

    /// Pairs of y's rows, zero behind the last, with rows and columns exchanged.
    #[inline(always)]
    fn transpose_y<V: Vector>(&mut self, rows: &Range<usize>) {
        let (g, m, step) = (self.gradient, self.outputs.len(), self.y_step(rows));
        let (width, s) = (m.next_multiple_of(ROWS), &mut *self.scratch);
        s.y_pairs.resize(s.y_pairs.len().max(SIDE * width), 0.0);
        s.y.resize(s.y.len().max(width * step), 0.0);
        let row = |row: usize| (row < rows.end).then(|| &g.y[row * g.m + self.outputs.start..][..m]);
        for block in (0..pairs(rows)).step_by(SIDE) {
            for (i, pair) in s.y_pairs.chunks_exact_mut(width).take(SIDE).enumerate() {
                let first = rows.start + 2 * (block + i);
                join(row(first), row(first + 1), &mut pair[..m]);
            }
            for j in (0..width).step_by(SIDE) {
                // SAFETY: the caller's instruction set.
                unsafe { simd::transpose::<f32, V>(&s.y_pairs[j..], width, SIDE, &mut s.y[j * step + block..], step) }
            }
        }
    }

    /// Pairs of the rows that x has under `part`, zero behind the last: `[rows / 2][columns]`.
    #[inline(always)]
    fn join_x<V: Vector>(&mut self, rows: &Range<usize>, part: &Part) {
        let (g, width, s) = (self.gradient, columns(part), &mut *self.scratch);
        s.x_pairs.resize(s.x_pairs.len().max(pairs(rows) * width), 0.0);
        for start in rows.clone().step_by(FEW_ROWS) {
            let few = start..rows.end.min(start + FEW_ROWS);
            g.map.runs(few.clone(), &mut s.runs);
            let source = Source { map: g.map, values: g.x, channels: g.n };
            s.rows.fill::<V>(&source, &s.runs, few.len(), part);
            let row = |row: usize| (row < few.len()).then(|| &s.rows.row(row)[..part.values()]);
            let to = &mut s.x_pairs[(start - rows.start) / 2 * width..][..FEW_ROWS / 2 * width];
            for (i, pair) in to.chunks_exact_mut(width).enumerate() {
                join(row(2 * i), row(2 * i + 1), &mut pair[..part.values()]);
            }
        }
    }

    /// Adds the products of a block to the sums of a part, which begin at `column`.
    #[inline(always)]
    fn multiply<V: Vector>(&mut self, rows: &Range<usize>, part: &Part, column: usize, add: bool, tiles: &Tiles) {
        let (c_step, y_step, width) = (4 * self.columns(), 4 * self.y_step(rows), columns(part));
        let s = &mut *self.scratch;
        let sum = Sum {
            a: s.y.as_ptr(),
            a_step: y_step,
            b: s.x_pairs.as_ptr(),
            b_step: 4 * width,
            c: s.sums[column..].as_mut_ptr(),
            c_step,
            depth: pairs(rows) / ROWS,
            add,
        };
        // SAFETY: y, x and the sums have whole tiles.
        unsafe { sum.run::<V>(tiles, self.outputs.len().div_ceil(ROWS), width / LANES) }
    }

    /// Writes the sums to the chunk's copy of the gradient.
    #[inline(always)]
    fn write(&self) {
        let (g, width) = (self.gradient, self.columns());
        for (i, output) in self.outputs.clone().enumerate() {
            let mut sums = &self.scratch.sums[i * width..][..width];
            for part in self.parts {
                let at = (output * g.map.taps() + part.taps.start) * g.n + part.channels.start;
                // SAFETY: this unit alone writes these parts of these outputs.
                let to = unsafe { std::slice::from_raw_parts_mut(self.to.0.add(at), part.values()) };
                to.copy_from_slice(&sums[..part.values()]);
                sums = &sums[columns(part)..];
            }
        }
    }
}

/// Lanes of two rows; of zeros where there is none.
#[inline(always)]
fn join(first: Option<&[bf16]>, second: Option<&[bf16]>, lanes: &mut [f32]) {
    match (first, second) {
        (Some(first), Some(second)) => bf16::join([first, second], lanes),
        (Some(first), None) => {
            for (lane, value) in lanes.iter_mut().zip(first) {
                *lane = f32::from_bits(u32::from(value.to_bits()));
            }
        }
        _ => lanes.fill(0.0),
    }
}
