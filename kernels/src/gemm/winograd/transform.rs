//! The way to the 16 positions of a tile and back.

use super::super::operand::Operand;
use super::super::tile::Target;
use super::tiles::{Block, Line, SIDE, SOURCE_SIDE, Tiles};
use crate::simd::{LINE, MAX_LANES, Vector, values_to_line};
use std::ops::Range;

/// Taps along H or W.
pub const TAPS: usize = 3;

/// `G`: taps to positions.
const FROM_TAPS: [[f32; TAPS]; SOURCE_SIDE] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// What a tap of the 3 x 3 counts for at a position, in `G w Gᵀ`, and the position for the tap, in `Gᵀ sums G`.
pub fn tap_factor(position: usize, tap: usize) -> f32 {
    FROM_TAPS[position / SOURCE_SIDE][tap / TAPS] * FROM_TAPS[position % SOURCE_SIDE][tap % TAPS]
}

/// `[position, row, channel]`: rows are the tiles of some planes.
#[derive(Default)]
pub struct Positions {
    values: Vec<f32>,
    /// Where position 0 begins: at a cache line, so that vectors do not reach over two where channels fill them.
    start: usize,
    channels: usize,
    /// From a position to the next. Whole pages would compete for the same places of the first-level cache.
    step: usize,
}

impl Positions {
    pub fn resize(&mut self, positions: usize, rows: usize, channels: usize) {
        self.channels = channels;
        // With room for a vector that begins with the last value.
        self.step = ((rows * channels).next_multiple_of(MAX_LANES) + MAX_LANES) | MAX_LANES;
        self.values.resize(self.values.len().max(LINE + positions * self.step), 0.0);
        self.start = values_to_line(self.values.as_ptr());
    }

    /// Writes a row's values from channel `k` on, in line `i` of the positions, and what is in the vectors behind them: rows and channels
    /// must come in order.
    #[inline(always)]
    unsafe fn put<V: Vector>(&mut self, row: usize, k: usize, i: usize, line: [V; SOURCE_SIDE]) {
        // SAFETY: the caller's instruction set; `resize` made room.
        unsafe {
            let to = self.row_mut(i * SOURCE_SIDE, row).add(k);
            for (j, v) in line.into_iter().enumerate() {
                v.store(to.add(j * self.step));
            }
        }
    }

    /// A row's values from channel `k` on, in line `i` of the positions, and what comes behind them.
    #[inline(always)]
    unsafe fn get<V: Vector>(&self, row: usize, k: usize, i: usize) -> [V; SOURCE_SIDE] {
        // SAFETY: the caller's instruction set; `resize` made room.
        unsafe {
            let from = self.row(i * SOURCE_SIDE, row).add(k);
            let mut line = [V::zero(); SOURCE_SIDE];
            for (j, v) in line.iter_mut().enumerate() {
                *v = V::load(from.add(j * self.step));
            }
            line
        }
    }

    pub fn step(&self) -> usize {
        self.step
    }

    /// Of the buffer itself rather than of a slice, so that it stays valid while other rows are written.
    pub fn row(&self, position: usize, row: usize) -> *const f32 {
        self.values.as_ptr().wrapping_add(self.place(position, row))
    }

    /// As [`Positions::row`].
    pub fn row_mut(&mut self, position: usize, row: usize) -> *mut f32 {
        let place = self.place(position, row);
        self.values.as_mut_ptr().wrapping_add(place)
    }

    fn place(&self, position: usize, row: usize) -> usize {
        let place = self.start + position * self.step + row * self.channels;
        debug_assert!(place < self.values.len());
        place
    }
}

/// The pixels of a tile, one line of them at each pointer, with zeros for padding.
struct Pixels<'a, S, const N: usize> {
    values: &'a [S],
    channels: usize,
    zeros: Vec<S>,
    /// Lines of a tile that reaches over an edge.
    edge: [Vec<S>; N],
}

impl<'a, S: Operand, const N: usize> Pixels<'a, S, N> {
    fn new(values: &'a [S], channels: usize) -> Self {
        let line = || vec![S::zeroed(); N * channels];
        Pixels { values, channels, zeros: line(), edge: std::array::from_fn(|_| line()) }
    }

    /// Of tile `i` of a line: N pixels each.
    #[inline(always)]
    fn tile(&mut self, line: &Line<N>, i: usize) -> [*const S; N] {
        let (column, channels) = (line.column(i), self.channels);
        let mut at = [self.zeros.as_ptr(); N];
        if column >= 0 && column as usize + N <= line.wide {
            for (at, pixel) in at.iter_mut().zip(line.pixels) {
                if let Some(pixel) = pixel {
                    *at = self.values[(pixel + column as usize) * channels..][..N * channels].as_ptr();
                }
            }
            return at;
        }
        for ((at, pixel), edge) in at.iter_mut().zip(line.pixels).zip(&mut self.edge) {
            let Some(pixel) = pixel else { continue };
            for (j, to) in edge.chunks_exact_mut(channels).enumerate() {
                match column + j as isize {
                    at if at >= 0 && (at as usize) < line.wide => {
                        to.copy_from_slice(&self.values[(pixel + at as usize) * channels..][..channels])
                    }
                    _ => to.fill(S::zeroed()),
                }
            }
            *at = edge.as_ptr();
        }
        at
    }
}

/// For [`Vector`]s. Some lines of `Bᵀ x B`, of a block's tiles in all planes that it reads.
#[inline(always)]
pub fn from_source<S: Operand, V: Vector>(
    tiles: &Tiles,
    block: &Block,
    lines: Range<usize>,
    source: &[S],
    to: &mut Positions,
) {
    let (channels, mut row) = (to.channels, 0);
    let mut pixels = Pixels::new(source, channels);
    for line in tiles.sources(block) {
        for i in 0..line.tiles {
            let x = pixels.tile(&line, i);
            for k in (0..channels).step_by(V::LANES) {
                // SAFETY: the caller's instruction set; there are SOURCE_SIDE pixels at each pointer.
                unsafe {
                    let mut columns = turned(load::<S, V, SOURCE_SIDE>(&x, k, channels));
                    for column in &mut columns {
                        *column = source_positions(*column);
                    }
                    for (i, line) in turned(columns).into_iter().enumerate() {
                        if lines.contains(&i) {
                            to.put(row, k, i - lines.start, source_positions(line));
                        }
                    }
                }
            }
            row += 1;
        }
    }
}

/// For [`Vector`]s. Some lines of `A dy Aᵀ` of a block's tiles.
#[inline(always)]
pub fn from_gradient<S: Operand, V: Vector>(
    tiles: &Tiles,
    block: &Block,
    lines: Range<usize>,
    dy: &[S],
    to: &mut Positions,
) {
    let (channels, mut row) = (to.channels, 0);
    let mut pixels = Pixels::new(dy, channels);
    for line in tiles.targets(block) {
        for i in 0..line.tiles {
            let y = pixels.tile(&line, i);
            for k in (0..channels).step_by(V::LANES) {
                // SAFETY: the caller's instruction set; there are SIDE pixels at each pointer.
                unsafe {
                    let [left, right] = turned(load::<S, V, SIDE>(&y, k, channels));
                    let columns = [gradient_positions(left), gradient_positions(right)];
                    for (i, line) in turned(columns).into_iter().enumerate() {
                        if lines.contains(&i) {
                            to.put(row, k, i - lines.start, gradient_positions(line));
                        }
                    }
                }
            }
            row += 1;
        }
    }
}

/// For [`Vector`]s. `Aᵀ sums A + bias` of a block's tiles, to the pixels that are inside. `bias` ends in a whole vector.
#[inline(always)]
pub fn to_target<S: Operand, V: Vector>(
    tiles: &Tiles,
    block: &Block,
    sums: &Positions,
    bias: &[f32],
    target: Target<S>,
) {
    let (n, mut row) = (sums.channels, 0);
    for line in tiles.targets(block) {
        for i in 0..line.tiles {
            let column = line.column(i) as usize;
            for k in (0..n).step_by(V::LANES) {
                // SAFETY: the caller's instruction set; the map names pixels of the target, and this unit alone writes them.
                unsafe {
                    let bias = V::load(bias[k..].as_ptr());
                    let mut lines = [[V::zero(); SIDE]; SOURCE_SIDE];
                    for (i, line) in lines.iter_mut().enumerate() {
                        *line = target_pixels(sums.get(row, k, i));
                    }
                    for (j, pixels) in turned(lines).into_iter().enumerate().take(line.wide - column) {
                        let pixels = target_pixels(pixels);
                        for (v, pixel) in pixels.into_iter().zip(line.pixels) {
                            let Some(pixel) = pixel else { continue };
                            let to = target.0.add((pixel + column + j) * n + k);
                            let v = v.add(bias);
                            if n - k >= V::LANES { S::store(v, to) } else { S::store_first(v, to, n - k) }
                        }
                    }
                }
            }
            row += 1;
        }
    }
}

/// Values of a tile's pixels from channel `k` on.
///
/// # Safety
/// As for [`Vector`]; there must be N pixels of `channels` values at each pointer.
#[inline(always)]
unsafe fn load<S: Operand, V: Vector, const N: usize>(at: &[*const S; N], k: usize, channels: usize) -> [[V; N]; N] {
    // SAFETY: the caller's.
    unsafe {
        let (mut values, whole) = ([[V::zero(); N]; N], channels - k >= V::LANES);
        for (values, at) in values.iter_mut().zip(at) {
            for (j, value) in values.iter_mut().enumerate() {
                let at = at.add(j * channels + k);
                *value = if whole { S::load(at) } else { S::load_first(at, channels - k) };
            }
        }
        values
    }
}

/// Lines and columns exchanged.
#[inline(always)]
fn turned<V: Copy, const R: usize, const C: usize>(lines: [[V; C]; R]) -> [[V; R]; C] {
    let mut columns = [[lines[0][0]; R]; C];
    for (i, line) in lines.iter().enumerate() {
        for (column, v) in columns.iter_mut().zip(line) {
            column[i] = *v;
        }
    }
    columns
}

/// `Bᵀ x`.
#[inline(always)]
unsafe fn source_positions<V: Vector>([a, b, c, d]: [V; SOURCE_SIDE]) -> [V; SOURCE_SIDE] {
    // SAFETY: the caller's instruction set.
    unsafe { [a.sub(c), b.add(c), c.sub(b), b.sub(d)] }
}

/// `A dy`.
#[inline(always)]
unsafe fn gradient_positions<V: Vector>([a, b]: [V; SIDE]) -> [V; SOURCE_SIDE] {
    // SAFETY: the caller's instruction set.
    unsafe { [a, a.add(b), a.sub(b), V::zero().sub(b)] }
}

/// `Aᵀ sums`.
#[inline(always)]
unsafe fn target_pixels<V: Vector>([a, b, c, d]: [V; SOURCE_SIDE]) -> [V; SIDE] {
    // SAFETY: the caller's instruction set.
    unsafe { [a.add(b).add(c), b.sub(c).sub(d)] }
}
