//! Copies of source lines with their padding, for sources of few channels: all taps along W lie side by side from a row's first tap
//! on, and are summed as one tap of more channels.

use super::map::{Map, Piece, Run};
use engine::Element;

/// Source channels from which a tap is worth its list of pointers: below, lines are copied.
const LONE_TAP_CHANNELS: usize = 48;

/// Whether a source's lines are copied: those of few channels are, where a line has several taps and all of it is met.
pub fn copies_lines(map: &Map, channels: usize) -> bool {
    let (taps, step) = (map.line_taps(), map.line_step());
    channels < LONE_TAP_CHANNELS && map.taps() > 0 && taps > 1 && step <= taps
}

/// Taps that are summed as one of more channels: those of a line where lines are copied.
pub fn joined_taps(map: &Map, channels: usize) -> usize {
    if copies_lines(map, channels) { map.line_taps() } else { 1 }
}

/// The pieces of source lines under the runs of a block.
pub struct Lines<T> {
    values: Vec<T>,
    /// Where the piece of each run begins, line of taps by line of taps; none where the whole line is padding.
    starts: Vec<Option<usize>>,
    runs: usize,
    /// Values from a row to the next.
    step: usize,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Lines { values: vec![], starts: vec![], runs: 0, step: 0 }
    }
}

impl<T: Element> Lines<T> {
    /// Copies what the runs meet of `source`, zero where that is padding.
    #[inline(always)]
    pub fn copy(&mut self, map: &Map, source: &[T], channels: usize, runs: &[Run]) {
        self.copy_lines(map, source, channels, runs, false);
    }

    /// The same, with zeros where the whole line is padding: from one line of taps to the next it is the same distance for all rows.
    #[inline(always)]
    pub fn copy_all(&mut self, map: &Map, source: &[T], channels: usize, runs: &[Run]) {
        self.copy_lines(map, source, channels, runs, true);
    }

    #[inline(always)]
    fn copy_lines(&mut self, map: &Map, source: &[T], channels: usize, runs: &[Run], all: bool) {
        (self.runs, self.step) = (runs.len(), map.line_step() * channels);
        self.values.clear();
        self.starts.clear();
        for tap in (0..map.taps()).step_by(map.line_taps()) {
            for run in runs {
                let piece = map.piece(run, tap, map.line_taps());
                self.starts.push((all || piece.is_some()).then_some(self.values.len()));
                match piece {
                    Some(Piece { before, source: pixels, after }) => {
                        self.pad(before * channels);
                        self.values.extend_from_slice(&source[pixels.start * channels..pixels.end * channels]);
                        self.pad(after * channels);
                    }
                    None if all => self.pad(((run.len() - 1) * map.line_step() + map.line_taps()) * channels),
                    None => {}
                }
            }
        }
    }

    fn pad(&mut self, values: usize) {
        self.values.resize(self.values.len() + values, T::zeroed());
    }

    /// For each run, where its first row's values for a line of taps begin in [`Lines::values`].
    #[inline(always)]
    pub fn starts(&self, line: usize) -> &[Option<usize>] {
        &self.starts[line * self.runs..][..self.runs]
    }

    /// Values from one line of taps to the next, after [`Lines::copy_all`].
    pub fn apart(&self) -> usize {
        self.values.len() / (self.starts.len() / self.runs)
    }

    pub fn values(&self) -> &[T] {
        &self.values
    }

    pub fn step(&self) -> usize {
        self.step
    }
}
