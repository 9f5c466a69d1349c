//! Lines of pixels, turned: neighbouring values are those of one channel.

use super::super::map::{Map, Run};
use crate::simd::{LINE, MAX_LANES, SIDE, Vector, transpose, values_to_line, will_read};
use std::ops::Range;

/// How many values behind what is turned memory is asked for.
const AHEAD: usize = 768;

/// Source lines with their padding. Each is copied once for all rows of a block that meet it.
#[derive(Default)]
pub struct Lines {
    /// `[channels, pitch]` each, from a cache line on; the first is zero.
    values: Vec<f32>,
    start: usize,
    size: usize,
    /// The source line that each run meets, line of taps by line of taps.
    met: Vec<Option<usize>>,
    runs: usize,
    /// Which copies the source's lines are, from the first one on that is met.
    copies: Vec<Option<usize>>,
    first: usize,
}

/// From one channel of a line to the next, for lines of so many rows: whole vectors under every tap.
pub fn pitch(map: &Map) -> usize {
    (map.line_rows().next_multiple_of(MAX_LANES) + map.line_taps() - 1).next_multiple_of(MAX_LANES)
}

impl Lines {
    /// Copies what the runs, which are whole lines, meet of `source`.
    #[inline(always)]
    pub fn copy<V: Vector>(&mut self, map: &Map, source: &[f32], channels: usize, runs: &[Run]) {
        let (pitch, taps) = (pitch(map), map.line_taps());
        self.size = channels * pitch;
        self.find(map, runs);
        let copies = self.number();
        self.values.clear();
        self.values.reserve(LINE + (1 + copies) * self.size);
        self.start = values_to_line(self.values.as_ptr());
        self.values.resize(self.start + (1 + copies) * self.size, 0.0);
        let mut copied = 0;
        for i in 0..self.met.len() {
            if self.copy_met(i) != Some(copied) {
                continue; // padding, or a line that was met before
            }
            copied += 1;
            if let Some(piece) = map.piece(&runs[i % runs.len()], i / runs.len() * taps, taps) {
                let source = &source[piece.source.start * channels..piece.source.end * channels];
                turn::<V>(source, channels, pitch, &mut self.values[self.start + copied * self.size + piece.before..]);
            }
        }
    }

    /// Finds the lines that are met.
    fn find(&mut self, map: &Map, runs: &[Run]) {
        self.runs = runs.len();
        self.met.clear();
        for tap in (0..map.taps()).step_by(map.line_taps()) {
            self.met.extend(runs.iter().map(|run| map.source_line(run, tap)));
        }
    }

    /// Numbers their copies, in the order in which they are met, and says how many there are.
    fn number(&mut self) -> usize {
        let (first, last) = (self.met.iter().flatten().min(), self.met.iter().flatten().max());
        self.first = first.copied().unwrap_or(0);
        self.copies.clear();
        self.copies.resize(last.map_or(0, |last| last + 1 - self.first), None);
        let mut copies = 0;
        for line in self.met.iter().flatten() {
            let copy = &mut self.copies[line - self.first];
            if copy.is_none() {
                *copy = Some(copies);
                copies += 1;
            }
        }
        copies
    }

    fn copy_met(&self, i: usize) -> Option<usize> {
        self.copies[self.met[i]? - self.first]
    }

    /// The copy of the line that a run meets under a line of taps; none where that is padding.
    #[inline(always)]
    pub fn met(&self, taps: usize, run: usize) -> Option<*const f32> {
        let copy = self.copy_met(taps * self.runs + run)?;
        Some(self.values[self.start + (1 + copy) * self.size..].as_ptr())
    }

    /// A line of zeros.
    #[inline(always)]
    pub fn zeros(&self) -> *const f32 {
        self.values[self.start..].as_ptr()
    }
}

/// Lines of rows, `[channels, pitch]` each, from a cache line on and zero behind the last row.
#[derive(Default)]
pub struct RowLines {
    values: Vec<f32>,
    start: usize,
}

impl RowLines {
    /// Copies lines of `pitch` rows or fewer.
    #[inline(always)]
    pub fn copy<V: Vector>(
        &mut self,
        rows: &[f32],
        channels: usize,
        pitch: usize,
        lines: impl ExactSizeIterator<Item = Range<usize>>,
    ) {
        let size = channels * pitch;
        self.values.resize(self.values.len().max(LINE + lines.len() * size), 0.0);
        self.start = values_to_line(self.values.as_ptr());
        for (line, to) in lines.zip(self.values[self.start..].chunks_exact_mut(size)) {
            for channel in to.chunks_exact_mut(pitch) {
                channel[line.len()..].fill(0.0);
            }
            turn::<V>(&rows[line.start * channels..line.end * channels], channels, pitch, to);
        }
    }

    /// Line `i` of those of so many values.
    #[inline(always)]
    pub fn line(&self, i: usize, size: usize) -> *const f32 {
        self.values[self.start + i * size..].as_ptr()
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
        for at in (0..SIDE * channels).step_by(LINE) {
            will_read(from.as_ptr().wrapping_add(i * channels + at + AHEAD));
        }
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
