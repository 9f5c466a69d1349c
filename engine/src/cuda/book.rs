//! Who has which place of a device's memory: live buffers, with what they were taken for, and captured graphs.
//!
//! A graph repeats addresses. So what was in its buffers' places during its capture, and is free at the capture's end, is kept for
//! it alone, and what its live buffers leave later is kept too. While it is captured, nobody else takes a place.

use crate::arena::{Arena, Place};
use crate::memory::LINE;
use crate::{DType, Shape};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// Tensors that an error lists.
const LISTED: usize = 5;

#[derive(Default)]
pub(super) struct Book {
    pub arena: Arena,
    /// By their numbers: each buffer has one that no other had before.
    live: HashMap<u64, (Shape, DType)>,
    /// Places that wait for a graph's own work, by the graphs' numbers.
    graphs: HashMap<u64, Vec<Place>>,
    /// The graph that is captured now.
    capture: Option<(u64, Vec<Place>)>,
    taken: u64,
}

impl Book {
    /// Whether the places are a capture's, and not for work of `home`.
    pub fn is_closed(&self, home: Option<u64>) -> bool {
        self.capture.as_ref().is_some_and(|(id, _)| home != Some(*id))
    }

    /// Takes a place for work of `home`, the graph that is captured, or for other work.
    pub fn take(&mut self, home: Option<u64>, lines: usize) -> Option<Place> {
        let place = self.arena.take(lines)?;
        if let Some((_, places)) = self.capture.as_mut().filter(|(id, _)| home == Some(*id)) {
            places.push(place);
        }
        Some(place)
    }

    /// Takes a place back, for its graph where that is still there.
    pub fn give(&mut self, home: Option<u64>, place: Place) {
        match home.and_then(|id| self.graphs.get_mut(&id)) {
            Some(kept) => kept.push(place),
            None => self.arena.give(place),
        }
    }

    /// Enters what a buffer is taken for. Returns its number.
    pub fn enter(&mut self, shape: Shape, dtype: DType) -> u64 {
        self.taken += 1;
        self.live.insert(self.taken, (shape, dtype));
        self.taken
    }

    /// Strikes out a buffer. Returns what it was taken for.
    pub fn strike(&mut self, number: u64) -> Option<(Shape, DType)> {
        self.live.remove(&number)
    }

    /// Whether these buffers are all live.
    pub fn holds(&self, numbers: &BTreeSet<u64>) -> bool {
        numbers.iter().all(|number| self.live.contains_key(number))
    }

    /// A capture begins.
    pub fn begin(&mut self, id: u64) {
        self.capture = Some((id, Vec::new()));
    }

    /// It ends: what is free of the places that it had is kept for its graph.
    pub fn end(&mut self) {
        let Some((id, places)) = self.capture.take() else { return };
        let claim = |(segment, lines)| self.arena.claim(segment, lines);
        self.graphs.insert(id, joined(&places).into_iter().flat_map(claim).collect());
    }

    /// Takes all free places for untouched, and names them, but for those that a capture has given back: its graph will use them.
    pub fn flush(&mut self) -> Vec<Range<usize>> {
        let kept: Vec<Place> = match &self.capture {
            Some((_, places)) => joined(places).into_iter().flat_map(|(s, lines)| self.arena.claim(s, lines)).collect(),
            None => Vec::new(),
        };
        let free = self.arena.flush().into_iter().map(|(_, lines)| lines).collect();
        kept.into_iter().for_each(|place| self.arena.give(place));
        free
    }

    /// A graph goes: its places are everybody's, and those of its live buffers will follow.
    pub fn dissolve(&mut self, id: u64) {
        self.graphs.remove(&id).into_iter().flatten().for_each(|place| self.arena.give(place));
    }

    /// The tensors that take the most together with their like, and what is kept for graphs, for a reader.
    pub fn largest(&self) -> String {
        let kept = self.graphs.values().flatten().map(|place| place.lines * LINE).sum::<usize>();
        let tensors = largest(self.live.values().copied());
        if kept > 0 { format!("{tensors}, and captured steps ({kept} bytes)") } else { tensors }
    }
}

/// The lines that lie in some of the places, each once, by their segments.
fn joined(places: &[Place]) -> Vec<(usize, Range<usize>)> {
    let mut ranges: Vec<_> = places.iter().map(|p| (p.segment, p.start..p.start + p.lines)).collect();
    ranges.sort_by_key(|(segment, lines)| (*segment, lines.start));
    ranges.dedup_by(|(segment, next), (kept_segment, kept)| {
        let joins = segment == kept_segment && next.start <= kept.end;
        kept.end = if joins { kept.end.max(next.end) } else { kept.end };
        joins
    });
    ranges
}

fn largest(live: impl Iterator<Item = (Shape, DType)>) -> String {
    let mut alike: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (shape, dtype) in live {
        let (count, bytes) = alike.entry(format!("{shape:?} {dtype}")).or_default();
        (*count, *bytes) = (*count + 1, *bytes + shape.numel() * dtype.size());
    }
    let mut alike: Vec<_> = alike.into_iter().collect();
    alike.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    let line = |(what, (count, bytes)): &(String, (usize, usize))| format!("{count} x {what} ({bytes} bytes)");
    alike.iter().take(LISTED).map(line).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAPH: Option<u64> = Some(7);

    fn book() -> Book {
        let mut book = Book::default();
        book.arena.grow(100);
        book
    }

    #[test]
    fn a_graphs_places_are_nobody_elses_until_it_is_dropped() {
        let mut book = book();
        let before = book.take(None, 10).expect("a place");
        book.begin(7);
        assert!(book.is_closed(None) && !book.is_closed(GRAPH));
        let [a, b] = [20, 30].map(|lines| book.take(GRAPH, lines).expect("a place"));
        book.give(GRAPH, a);
        // its own work takes again what it has given back
        let c = book.take(GRAPH, 15).expect("a place");
        assert_eq!(c.start, a.start);
        book.give(GRAPH, c);
        book.end();
        assert!(!book.is_closed(None));

        book.give(None, before);
        let other = book.take(None, 15).expect("a place");
        assert_eq!(other.start, b.start + b.lines);
        book.give(GRAPH, b);
        assert_eq!((book.take(None, 30), book.arena.usage.live), (None, 65 * LINE));
        book.dissolve(7);
        assert_eq!(book.arena.usage.live, 15 * LINE);
        assert_eq!(book.take(None, 60).map(|place| place.start), Some(0));
    }

    #[test]
    fn what_a_capture_has_given_back_is_not_flushed() {
        let mut book = book();
        let [before, _between] = [10, 5].map(|lines| book.take(None, lines).expect("a place"));
        book.give(None, before);
        book.begin(7);
        let [a, _b] = [4, 20].map(|lines| book.take(GRAPH, lines).expect("a place"));
        book.give(GRAPH, a);
        assert_eq!((a.start, book.flush()), (0, vec![4..10, 35..100]));
        assert_eq!((book.take(GRAPH, 10), book.arena.usage.live), (Some(before), 35 * LINE));
        book.give(GRAPH, before);
        book.end();
        assert_eq!(book.flush().first(), Some(&(35..100)));
        book.dissolve(7);
        assert_eq!(book.flush(), [0..10, 35..100]);
    }

    #[test]
    fn a_buffer_that_outlives_its_graph_is_given_back_to_all() {
        let mut book = book();
        book.begin(7);
        let place = book.take(GRAPH, 100).expect("a place");
        book.end();
        book.dissolve(7);
        assert_eq!(book.take(None, 1), None);
        book.give(GRAPH, place);
        assert_eq!(book.take(None, 100), Some(place));
    }

    #[test]
    fn a_buffer_that_was_given_back_is_not_taken_for_another() {
        let mut book = book();
        let enter = |book: &mut Book| book.enter(Shape::new(&[16]).expect("shape"), DType::F32);
        let (a, b) = (enter(&mut book), enter(&mut book));
        assert!(a < b && book.holds(&BTreeSet::from([a, b])));
        assert!(book.strike(a).is_some() && enter(&mut book) > b);
        assert!(!book.holds(&BTreeSet::from([a, b])) && book.holds(&BTreeSet::from([b])));
    }

    #[test]
    fn places_that_touch_or_overlap_are_joined() {
        let place = |segment, start, lines| Place { segment, start, lines };
        let places = [place(0, 8, 2), place(1, 3, 4), place(0, 0, 5), place(0, 3, 2), place(0, 5, 1), place(0, 1, 1)];
        assert_eq!(joined(&places), [(0, 0..6), (0, 8..10), (1, 3..7)]);
    }

    #[test]
    fn the_largest_tensors_come_first_with_their_like() {
        let of = |dims: &[usize]| (Shape::new(dims).expect("shape"), DType::F32);
        let text = largest([of(&[3, 10]), of(&[100]), of(&[3, 10]), of(&[1]), of(&[3, 10]), of(&[3, 10])].into_iter());
        assert_eq!(text, "4 x [3, 10] f32 (480 bytes), 1 x [100] f32 (400 bytes), 1 x [1] f32 (4 bytes)");
    }
}
