//! Rows of a product with their values under several taps side by side: what tiles read.

use super::tiles::{ROWS, VALUES};
use crate::gemm::map::{Map, Piece, Run};
use crate::simd::Vector;
use engine::bf16;
use std::ops::Range;

/// Values that a part of a product's sum takes at most. More of them make fewer parts, between which sums go through memory; fewer
/// leave room in the caches.
const PART_VALUES: usize = 320;

/// Part of a product's sum: these taps of the map, these channels of each.
#[derive(Clone, Debug)]
pub struct Part {
    pub taps: Range<usize>,
    pub channels: Range<usize>,
    /// How many taps in a row are copied at once: neighbours along W.
    joined: usize,
}

impl Part {
    /// The parts of a sum over all taps: lines of taps, or single ones, or parts of their channels.
    pub fn all(map: &Map, channels: usize) -> Vec<Part> {
        let (taps, line) = (map.taps(), map.line_taps());
        if taps == 0 {
            return Vec::new();
        }
        if line * channels <= PART_VALUES {
            let (lines, most) = (taps / line, PART_VALUES / (line * channels));
            let share = lines.div_ceil(lines.div_ceil(most)) * line;
            let part = |t: usize| Part { taps: t..taps.min(t + share), channels: 0..channels, joined: line };
            return (0..taps).step_by(share).map(part).collect();
        }
        let share = channels.div_ceil(channels.div_ceil(PART_VALUES)).next_multiple_of(VALUES);
        let part = |t: usize, k: usize| Part { taps: t..t + 1, channels: k..channels.min(k + share), joined: 1 };
        (0..taps).flat_map(|t| (0..channels).step_by(share).map(move |k| part(t, k))).collect()
    }

    /// Values of a row.
    pub fn values(&self) -> usize {
        self.taps.len() * self.channels.len()
    }

    /// Tiles along a row; what the last one lacks is zero.
    pub fn depth(&self) -> usize {
        self.values().div_ceil(VALUES)
    }
}

/// Where rows come from.
pub struct Source<'a> {
    pub map: &'a Map,
    pub values: &'a [bf16],
    pub channels: usize,
}

/// Rows of bf16, `[rows][stride]`.
#[derive(Default)]
pub struct Gathered {
    values: Vec<bf16>,
    stride: usize,
}

impl Gathered {
    /// What the rows of `runs`, `rows` in all, meet under a part of the taps; zero where that is padding, and behind it up to whole
    /// tiles.
    #[inline(always)]
    pub fn fill<V: Vector>(&mut self, source: &Source, runs: &[Run], rows: usize, part: &Part) {
        // Distances of an odd number of lines of the caches: with an even one, fewer of their places would be used.
        self.stride = (part.depth() | 1) * VALUES;
        let size = rows.next_multiple_of(ROWS) * self.stride;
        self.values.resize(self.values.len().max(size), bf16::ZERO);
        let (used, whole) = (part.values(), part.depth() * VALUES);
        if used < whole {
            self.values.chunks_exact_mut(self.stride).take(rows).for_each(|row| row[used..whole].fill(bf16::ZERO));
        }
        let width = part.joined * part.channels.len();
        // Loops rather than closures, in which what needs the instruction set would not be inlined.
        for (i, tap) in part.taps.clone().step_by(part.joined).enumerate() {
            for run in runs {
                let windows = source.map.piece(run, tap, part.joined).map(|piece| Windows { source, piece, part });
                let to = &mut self.values[run.row * self.stride + i * width..];
                for (row, to) in to.chunks_mut(self.stride).take(run.len()).enumerate() {
                    match &windows {
                        Some(windows) => windows.copy::<V>(row, &mut to[..width]),
                        None => to[..width].fill(bf16::ZERO),
                    }
                }
            }
        }
    }

    /// All rows, each [`Gathered::stride`] behind the one before.
    pub fn as_ptr(&self) -> *const bf16 {
        self.values.as_ptr()
    }

    pub fn row(&self, row: usize) -> &[bf16] {
        &self.values[row * self.stride..][..self.stride]
    }

    pub fn stride(&self) -> usize {
        self.stride
    }
}

/// What the rows of a run meet under neighbouring taps: `part.joined` pixels of a piece of a line.
struct Windows<'a> {
    source: &'a Source<'a>,
    piece: Piece,
    part: &'a Part,
}

impl Windows<'_> {
    /// The window of row `i`.
    #[inline(always)]
    fn copy<V: Vector>(&self, i: usize, to: &mut [bf16]) {
        let first = i * self.source.map.line_step();
        let end = first + self.part.joined;
        let (before, after) = (self.piece.before, self.piece.before + self.piece.source.len());
        let (from, until) = (first.max(before), end.min(after));
        if from >= until {
            return to.fill(bf16::ZERO);
        }
        // Several taps are joined only with all their channels: then those of neighbours lie side by side.
        let each = self.part.channels.len();
        let at = (self.piece.source.start + from - before) * self.source.channels + self.part.channels.start;
        let (zeros, rest) = to.split_at_mut((from - first) * each);
        let (values, more_zeros) = rest.split_at_mut((until - from) * each);
        zeros.fill(bf16::ZERO);
        more_zeros.fill(bf16::ZERO);
        copy::<V>(&self.source.values[at..][..values.len()], values);
    }
}

/// Slices of one length: some hundreds of bytes, for which a call would take longer.
#[inline(always)]
fn copy<V: Vector>(from: &[bf16], to: &mut [bf16]) {
    let lanes = to.len() / 2;
    let (from_lanes, to_lanes) = (from.as_ptr().cast::<f32>(), to.as_mut_ptr().cast::<f32>());
    // SAFETY: the caller's instruction set; both have so many lanes of two values.
    unsafe {
        let whole = lanes / V::LANES * V::LANES;
        for i in (0..whole).step_by(V::LANES) {
            V::load(from_lanes.add(i)).store(to_lanes.add(i));
        }
        V::load_first(from_lanes.add(whole), lanes - whole).store_first(to_lanes.add(whole), lanes - whole);
    }
    if to.len() % 2 == 1 {
        to[2 * lanes] = from[2 * lanes];
    }
}
