//! Places for buffers in a few large segments: which lines are taken, which are free, and nothing about the memory itself.
//!
//! A buffer takes the first free range that is long enough, and returns it to its neighbours, so that what many small tensors
//! leave behind serves a large one. Segments double, and are meant to be backed by memory that takes room only where it is
//! touched; the account counts those parts.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of the unit of places: a cache line.
pub(crate) const LINE: usize = 64;
/// Lines of the smallest segment: 256 MiB.
const SMALLEST: usize = 4 << 20;

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What tensors hold now, and the most they have held since the last reset.
    pub live: usize,
    pub peak: usize,
    /// What was taken from the system and not given back: live, or waiting for the next tensor.
    pub held: usize,
}

/// Where a buffer lies: its first line, in which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub segment: usize,
    pub start: usize,
    pub lines: usize,
}

/// Free lines of a segment; of these so many were in use before.
#[derive(Clone, Copy, Debug)]
struct Free {
    lines: usize,
    touched: usize,
}

/// A segment's free ranges by their first line; no two are neighbours.
#[derive(Debug, Default)]
struct Segment {
    lines: usize,
    free: BTreeMap<usize, Free>,
}

#[derive(Debug, Default)]
pub(crate) struct Arena {
    segments: Vec<Segment>,
    pub usage: Usage,
}

impl Arena {
    /// Takes lines where there are some.
    pub fn take(&mut self, lines: usize) -> Option<Place> {
        let fitting = |segment: &Segment| segment.free.iter().find(|(_, free)| free.lines >= lines).map(|(&at, _)| at);
        let (segment, start) =
            self.segments.iter().enumerate().find_map(|(i, segment)| fitting(segment).map(|start| (i, start)))?;
        let fresh = self.segments[segment].take(start, lines);
        let usage = &mut self.usage;
        usage.live += lines * LINE;
        usage.peak = usage.peak.max(usage.live);
        usage.held += fresh * LINE;
        Some(Place { segment, start, lines })
    }

    /// Takes lines, of a new segment where there are none; for memory that always can be had.
    pub fn take_or_grow(&mut self, lines: usize) -> Option<Place> {
        self.take(lines).or_else(|| {
            self.grow(self.growth(lines));
            self.take(lines)
        })
    }

    /// Returns what was taken.
    pub fn give(&mut self, place: Place) {
        self.usage.live -= place.lines * LINE;
        self.segments[place.segment].give(place.start, place.lines);
    }

    /// Takes what is free of some lines of a segment that were all in use before.
    pub fn claim(&mut self, segment: usize, lines: Range<usize>) -> Vec<Place> {
        let taken = self.segments[segment].claim(lines);
        let places = taken.into_iter().map(|lines| Place { segment, start: lines.start, lines: lines.len() });
        let places: Vec<Place> = places.collect();
        let usage = &mut self.usage;
        usage.live += places.iter().map(|place| place.lines * LINE).sum::<usize>();
        usage.peak = usage.peak.max(usage.live);
        places
    }

    /// Lines of the segment to add for a buffer that fits nowhere: as many as all others have.
    pub fn growth(&self, lines: usize) -> usize {
        self.segments.iter().map(|s| s.lines).sum::<usize>().max(SMALLEST).max(lines)
    }

    /// Adds a free segment that was never touched.
    pub fn grow(&mut self, lines: usize) {
        self.segments.push(Segment { lines, free: BTreeMap::from([(0, Free { lines, touched: 0 })]) });
    }

    /// Takes all free ranges for untouched, and names them by their segments: also those that are untouched by the account, which
    /// does not know where in a range that was joined the touched lines are.
    pub fn flush(&mut self) -> Vec<(usize, Range<usize>)> {
        self.usage.held = self.usage.live;
        let segments = self.segments.iter_mut().enumerate();
        segments.flat_map(|(i, segment)| segment.flush().into_iter().map(move |range| (i, range))).collect()
    }
}

impl Segment {
    /// Takes the first lines of the free range at `start`; how many of them were never touched. A range is touched from its start.
    fn take(&mut self, start: usize, lines: usize) -> usize {
        let Some(free) = self.free.remove(&start) else { return 0 };
        let rest = Free { lines: free.lines - lines, touched: free.touched.saturating_sub(lines) };
        if rest.lines > 0 {
            self.free.insert(start + lines, rest);
        }
        lines.saturating_sub(free.touched)
    }

    fn give(&mut self, mut start: usize, lines: usize) {
        let mut freed = Free { lines, touched: lines };
        if let Some(next) = self.free.remove(&(start + lines)) {
            freed = Free { lines: freed.lines + next.lines, touched: freed.touched + next.touched };
        }
        let before = self.free.range(..start).next_back().map(|(&at, &free)| (at, free));
        if let Some((at, free)) = before.filter(|(at, free)| at + free.lines == start) {
            freed = Free { lines: free.lines + freed.lines, touched: free.touched + freed.touched };
            start = at;
        }
        self.free.insert(start, freed);
    }

    fn claim(&mut self, lines: Range<usize>) -> Vec<Range<usize>> {
        let end = |(&at, free): (&usize, &Free)| at + free.lines;
        let before = self.free.range(..lines.start).next_back().filter(|&entry| end(entry) > lines.start);
        let first = before.map_or(lines.start, |(&at, _)| at);
        let found: Vec<usize> = self.free.range(first..lines.end).map(|(&at, _)| at).collect();
        found.into_iter().map(|at| self.cut(at, &lines)).collect()
    }

    /// Takes the lines that a free range shares with others.
    fn cut(&mut self, at: usize, lines: &Range<usize>) -> Range<usize> {
        let free = self.free.remove(&at).unwrap_or(Free { lines: 0, touched: 0 });
        let (start, end) = (at.max(lines.start), (at + free.lines).min(lines.end));
        let mut keep = |from: usize, to: usize| {
            if to > from {
                let touched = (at + free.touched).clamp(from, to) - from;
                self.free.insert(from, Free { lines: to - from, touched });
            }
        };
        keep(at, start);
        keep(end, at + free.lines);
        start..end
    }

    fn flush(&mut self) -> Vec<Range<usize>> {
        let forget = |(&start, free): (&usize, &mut Free)| {
            free.touched = 0;
            start..start + free.lines
        };
        self.free.iter_mut().map(forget).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    fn grown(arena: &mut Arena, lines: usize) -> Place {
        arena.take_or_grow(lines).expect("a place")
    }

    #[test]
    fn what_small_buffers_leave_serves_a_large_one() {
        let mut arena = Arena::default();
        let small: Vec<Place> = (0..8).map(|_| grown(&mut arena, 10)).collect();
        let kept = grown(&mut arena, 1);
        // In no particular order.
        [3, 0, 7, 1, 2, 6, 5, 4].into_iter().for_each(|i| arena.give(small[i]));
        assert_eq!(grown(&mut arena, 80), Place { segment: 0, start: 0, lines: 80 });
        assert_eq!(arena.usage, Usage { live: 81 * LINE, peak: 81 * LINE, held: 81 * LINE });
        arena.give(kept);
        assert_eq!(grown(&mut arena, 2).start, 80);
        assert_eq!(arena.usage.held, 82 * LINE);
    }

    #[test]
    fn a_flush_forgets_what_is_free_and_keeps_what_is_taken() {
        let mut arena = Arena::default();
        let [a, b, c] = [5, 6, 7].map(|lines| grown(&mut arena, lines));
        arena.give(a);
        arena.give(c);
        let end = arena.growth(0);
        assert_eq!(arena.flush(), [(0, 0..5), (0, 11..end)]);
        assert_eq!((arena.usage.held, arena.usage.live), (b.lines * LINE, b.lines * LINE));
        assert_eq!((grown(&mut arena, 5).start, arena.usage.held), (0, 11 * LINE));
    }

    #[test]
    fn what_joins_an_untouched_range_is_flushed_wherever_it_lies() {
        let mut arena = Arena::default();
        let [a, b, _c] = [5, 6, 7].map(|lines| grown(&mut arena, lines));
        arena.give(a);
        arena.flush();
        arena.give(b);
        assert_eq!(grown(&mut arena, 6).start, 0);
        assert_eq!(arena.flush(), [(0, 6..11), (0, 18..arena.growth(0))]);
    }

    #[test]
    fn what_is_free_between_live_buffers_can_be_claimed() {
        let mut arena = Arena::default();
        let [a, b, c, d] = [5, 6, 7, 8].map(|lines| grown(&mut arena, lines));
        [a, c, d].into_iter().for_each(|place| arena.give(place));
        let claimed = arena.claim(0, 2..20);
        assert_eq!(claimed.iter().map(|p| (p.start, p.lines)).collect::<Vec<_>>(), [(2, 3), (11, 9)]);
        assert_eq!(arena.usage.live, (b.lines + 12) * LINE);
        assert!(arena.claim(0, 2..20).is_empty());
        assert_eq!((grown(&mut arena, 2).start, grown(&mut arena, 3).start), (0, 20));
        assert_eq!(arena.usage.held, 26 * LINE);
        claimed.into_iter().for_each(|place| arena.give(place));
        assert_eq!(grown(&mut arena, 9).start, 11);
    }

    #[test]
    fn segments_double() {
        let mut arena = Arena::default();
        assert_eq!(arena.growth(1), SMALLEST);
        grown(&mut arena, SMALLEST - 1);
        assert_eq!(arena.growth(7), SMALLEST);
        assert_eq!(grown(&mut arena, 3 * SMALLEST).segment, 1);
        assert_eq!((arena.growth(1), grown(&mut arena, 1).segment), (4 * SMALLEST, 0));
    }

    #[test]
    fn buffers_never_overlap_and_all_lines_come_back() {
        let mut arena = Arena::default();
        let mut live: Vec<Place> = Vec::new();
        for i in 0..4000 {
            let draw = |k: u64, n: usize| (uniform(k, i) * n as f64) as usize;
            if live.len() < 5 || draw(1, 2) == 0 {
                let place = grown(&mut arena, 1 + draw(2, SMALLEST / 16));
                let apart = |p: &Place| {
                    p.segment != place.segment
                        || p.start + p.lines <= place.start
                        || place.start + place.lines <= p.start
                };
                assert!(live.iter().all(apart), "{place:?}");
                live.push(place);
            } else {
                arena.give(live.swap_remove(draw(3, live.len())));
            }
            let taken: usize = live.iter().map(|p| p.lines * LINE).sum();
            assert!(arena.usage.live == taken && arena.usage.held >= taken);
        }
        live.into_iter().for_each(|p| arena.give(p));
        assert!(arena.segments.iter().all(|s| s.free.len() == 1 && s.free[&0].lines == s.lines));
        assert_eq!(arena.usage.live, 0);
    }
}
