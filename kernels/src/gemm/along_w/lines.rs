//! Source lines with their padding, turned: neighbouring values are those of one channel. Each is copied once for all rows of a block
//! that meet it.

use super::super::map::{Map, Run};
use crate::simd::{MAX_LANES, SIDE, Vector, transpose};

/// Bytes.
const CACHE_LINE: usize = 64;

#[derive(Default)]
pub struct Lines {
    /// `[channels, pitch]` each, from a cache line on; the first is zero.
    values: Vec<f32>,
    /// The source pixels that lines begin with, and where their copies are.
    copied: Vec<(usize, usize)>,
    /// Where the line is that each run meets, line of taps by line of taps.
    met: Vec<usize>,
}

/// From one channel of a line to the next, for lines of so many rows: whole vectors under every tap.
pub fn pitch(map: &Map) -> usize {
    (map.line_rows().next_multiple_of(MAX_LANES) + map.line_taps() - 1).next_multiple_of(MAX_LANES)
}

impl Lines {
    /// Copies what the runs, which are whole lines, meet of `source`.
    #[inline(always)]
    pub fn copy<V: Vector>(&mut self, map: &Map, source: &[f32], channels: usize, runs: &[Run]) {
        let (pitch, size) = (pitch(map), channels * pitch(map));
        self.copied.clear();
        self.met.clear();
        self.values.clear();
        self.values.reserve(MAX_LANES + (1 + map.taps() / map.line_taps() * runs.len()) * size);
        let zeros = self.values.as_ptr().align_offset(CACHE_LINE).min(MAX_LANES);
        self.values.resize(zeros + size, 0.0);
        for tap in (0..map.taps()).step_by(map.line_taps()) {
            for run in runs {
                let Some(piece) = map.piece(run, tap, map.line_taps()) else {
                    self.met.push(zeros);
                    continue;
                };
                // Two whole lines that begin with one pixel are one line.
                let known = self.copied.iter().rev().find(|(first, _)| *first == piece.source.start);
                let at = known.map_or(self.values.len(), |(_, at)| *at);
                self.met.push(at);
                if at == self.values.len() {
                    self.copied.push((piece.source.start, at));
                    self.values.resize(at + size, 0.0);
                    let source = &source[piece.source.start * channels..piece.source.end * channels];
                    turn::<V>(source, channels, pitch, &mut self.values[at + piece.before..]);
                }
            }
        }
    }

    pub fn values(&self) -> *const f32 {
        self.values.as_ptr()
    }

    /// Where in the values the lines are that `runs` runs meet under some lines of taps, those of one after those of another.
    #[inline(always)]
    pub fn met(&self, taps: std::ops::Range<usize>, runs: usize) -> &[usize] {
        &self.met[taps.start * runs..taps.end * runs]
    }
}

/// `to[channel * pitch + i] = from[i * channels + channel]`.
#[inline(always)]
fn turn<V: Vector>(from: &[f32], channels: usize, pitch: usize, to: &mut [f32]) {
    if channels == 1 {
        return to[..from.len()].copy_from_slice(from);
    }
    let wide = from.len() / channels;
    let blocks = if channels < SIDE { 0 } else { wide / SIDE };
    for i in (0..blocks * SIDE).step_by(SIDE) {
        // The last block of channels ends with the last channel, and may meet some of the one before again.
        for channel in (0..channels).step_by(SIDE).map(|channel| channel.min(channels - SIDE)) {
            let (from, to) = (&from[i * channels + channel..], &mut to[channel * pitch + i..]);
            // SAFETY: the caller's instruction set.
            unsafe { transpose::<f32, V>(from, channels, SIDE, to, pitch) }
        }
    }
    for channel in 0..channels {
        for i in blocks * SIDE..wide {
            to[channel * pitch + i] = from[i * channels + channel];
        }
    }
}
