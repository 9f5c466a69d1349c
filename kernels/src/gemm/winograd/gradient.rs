//! The gradient of a weight: blocks are cut into chunks whose number follows from the shape alone, and a unit is a chunk and some lines
//! of positions, so that its sums stay in the second-level cache. Each chunk sums all positions of all taps along D into its own copy;
//! copies are added in order, and taken back to 3 x 3 taps.

use super::super::gradient::{Gradient, cut_blocks, sum_chunks};
use super::super::operand::Operand;
use super::super::tile::{Factor, Outer, Target};
use super::POSITIONS;
use super::tiles::{SOURCE_SIDE, Tiles};
use super::transform::{Positions, TAPS, from_gradient, from_source, tap_factor};
use crate::simd::{Kernel, Vector, dispatch};
use engine::parallel;
use std::ops::Range;

/// Lines of positions of a unit.
const LINES: usize = 2;
/// Units that share a chunk.
const PARTS: usize = SOURCE_SIDE / LINES;

/// Writes `dw`, `[m][depth][TAPS][TAPS][n]`.
pub fn run<S: Operand>(gradient: &Gradient<S>, tiles: &Tiles, dw: &mut [f32]) {
    let (m, n) = (gradient.m, gradient.n);
    let mut sums = vec![0.0; POSITIONS * tiles.depth * m * n];
    let (chunks, chunk) = cut_blocks(tiles.blocks(), gradient.map.rows(), PARTS, sums.len());
    sum_chunks(&mut sums, chunks, |targets| {
        parallel::run_with(chunks * PARTS, Scratch::default, |scratch, unit| {
            let (i, part) = (unit / PARTS, unit % PARTS);
            let blocks = i * chunk..tiles.blocks().min((i + 1) * chunk);
            let lines = part * LINES..(part + 1) * LINES;
            S::dispatch(Unit { gradient, tiles, blocks, lines, to: targets[i], scratch });
        });
    });
    parallel::each(dw.chunks_exact_mut(tiles.depth * TAPS * TAPS * n).enumerate(), |(i, dw)| {
        dispatch(Taps { sums: &sums[i * n..], step: m * n, depth: tiles.depth, n, dw });
    });
}

/// What a thread reuses from unit to unit.
#[derive(Default)]
struct Scratch {
    source: Positions,
    gradient: Positions,
    x: Vec<*const f32>,
    y: Vec<*const f32>,
}

struct Unit<'a, S> {
    gradient: &'a Gradient<'a, S>,
    tiles: &'a Tiles,
    blocks: Range<usize>,
    lines: Range<usize>,
    /// `[POSITIONS, depth, m, n]`.
    to: Target<f32>,
    scratch: &'a mut Scratch,
}

impl<S: Operand> Kernel for Unit<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (g, tiles, s) = (self.gradient, self.tiles, self.scratch);
        let [most, most_sources] = tiles.most_rows();
        s.source.resize(LINES * SOURCE_SIDE, most_sources, g.n);
        s.gradient.resize(LINES * SOURCE_SIDE, most, g.m);
        for i in self.blocks.clone() {
            let block = tiles.block(i);
            from_source::<S, V>(tiles, &block, self.lines.clone(), g.x, &mut s.source);
            from_gradient::<S, V>(tiles, &block, self.lines.clone(), g.y, &mut s.gradient);
            let rows = block.planes() * block.tiles();
            for position in 0..LINES * SOURCE_SIDE {
                s.y.clear();
                s.y.extend((0..rows).map(|row| s.gradient.row(position, row)));
                s.x.clear();
                s.x.extend((0..rows + (tiles.depth - 1) * block.tiles()).map(|row| s.source.row(position, row)));
                for tap in 0..tiles.depth {
                    let x = Factor { rows: s.x[tap * block.tiles()..].as_ptr(), values: g.n, ahead: 0, apart: None };
                    let y = Factor { rows: s.y.as_ptr(), values: g.m, ahead: 0, apart: None };
                    let add = i > self.blocks.start;
                    // SAFETY: the lists have all rows of the block, and the sums all positions and taps.
                    unsafe {
                        let position = self.lines.start * SOURCE_SIDE + position;
                        let c = self.to.0.add((position * tiles.depth + tap) * g.m * g.n);
                        Outer { y, x, rows, c, c_step: g.n, add, turn: 0 }.run::<f32, V>();
                    }
                }
            }
        }
    }
}

/// `Gᵀ sums G` of one output: `[POSITIONS, depth, n]`, of which planes of n are `step` apart, to `[depth, TAPS, TAPS, n]`.
struct Taps<'a> {
    sums: &'a [f32],
    step: usize,
    depth: usize,
    n: usize,
    dw: &'a mut [f32],
}

impl Kernel for Taps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        self.dw.fill(0.0);
        for (i, dw) in self.dw.chunks_exact_mut(self.n).enumerate() {
            let (d, tap) = (i / (TAPS * TAPS), i % (TAPS * TAPS));
            for position in 0..POSITIONS {
                let factor = tap_factor(position, tap);
                if factor != 0.0 {
                    for (dw, sum) in dw.iter_mut().zip(&self.sums[(position * self.depth + d) * self.step..]) {
                        *dw += factor * sum;
                    }
                }
            }
        }
    }
}
