//! Which source pixel each tap of a kernel meets, for every row of a product.

use crate::check::product;
use std::ops::Range;

/// A kernel position along one axis: row `i` meets source position `i * step + offset`.
#[derive(Clone, Copy, Debug)]
struct Tap {
    kernel: usize,
    offset: isize,
    /// The rows that meet the source.
    first: usize,
    end: usize,
}

/// One axis: `rows` positions in the target, at `start`, `start + stride`, ..
#[derive(Clone, Debug)]
struct Axis {
    rows: usize,
    step: usize,
    taps: Vec<Tap>,
    source: usize,
    target: usize,
    start: usize,
    stride: usize,
}

impl Axis {
    /// Source position of `row` under `tap`, if it is not padding.
    fn meets(&self, row: usize, tap: usize) -> Option<usize> {
        let at = (row * self.step).checked_add_signed(self.taps[tap].offset)?;
        (at < self.source).then_some(at)
    }

    /// Adds the tap of kernel position `kernel` that meets source position `row * step + offset`.
    fn tap(&mut self, kernel: usize, offset: isize) {
        let end = self.source.saturating_add_signed(-offset).div_ceil(self.step).min(self.rows);
        let first = offset.min(0).unsigned_abs().div_ceil(self.step).min(end);
        self.taps.push(Tap { kernel, offset, first, end });
    }

    fn place(&self, row: usize) -> usize {
        self.start + row * self.stride
    }
}

/// What a run meets under a line of taps: so many pixels of padding, those of the source, and padding again.
#[derive(Clone, Debug)]
pub struct Piece {
    pub before: usize,
    pub source: Range<usize>,
    pub after: usize,
}

/// A map whose rows are all pixels of the target and whose taps are neighbours in the source, see [`Map::neighbours`]; sizes are
/// `[D, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    pub batch: usize,
    pub target: [usize; 3],
    pub source: [usize; 3],
    pub taps: [usize; 3],
    /// Where row 0 meets the source under the first tap.
    pub offset: [isize; 3],
}

/// Rows of a product (pixels of the target, in order n, d, h, w) and the source pixels they meet under each tap.
///
/// A convolution is one map from output to input pixels. The gradient of its input is `stride^3` maps, one for each residue of
/// the input position: inside one, neighbouring rows meet neighbouring output pixels under the same taps.
#[derive(Clone, Debug)]
pub struct Map {
    batch: usize,
    axes: [Axis; 3],
    kernel: [usize; 3],
    /// Positions in the axes' taps, in the order of the source pixels that they meet.
    taps: Vec<[usize; 3]>,
}

/// The largest stride and padding, so that positions can be computed without overflow.
pub const MAX_STEP: usize = 1 << 31;

/// Sizes of the convolution that a map is made for, as `[D, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub batch: usize,
    pub input: [usize; 3],
    pub output: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub padding: [usize; 3],
}

impl Geometry {
    /// A line of rows in which each meets itself.
    pub fn identity(rows: usize) -> Geometry {
        let (ones, line) = ([1; 3], [1, 1, rows]);
        Geometry { batch: 1, input: line, output: line, kernel: ones, stride: ones, padding: [0; 3] }
    }

    /// The same convolution with the input pixels along W that an output meets as one of more channels, and how many they are: where the
    /// kernel is as long as the stride and all of the input is met, and 1 elsewhere.
    pub fn fold(&self) -> (Geometry, usize) {
        let (mut g, [kernel, stride]) = (*self, [self.kernel[2], self.stride[2]]);
        if kernel != stride || g.padding[2] > 0 || g.input[2] != g.output[2] * stride {
            return (g, 1);
        }
        (g.input[2], g.kernel[2], g.stride[2]) = (g.output[2], 1, 1);
        (g, stride)
    }

    /// Multiplications of the convolution, and of either gradient, with a weight of this shape.
    pub fn products(&self, weight: &[usize]) -> u128 {
        product(weight.iter().chain(&self.output).copied().chain([self.batch]))
    }
}

/// A run of rows in one line of the target: rows `w` of line (n, d, h), the first being row `row` of the block.
#[derive(Clone, Debug)]
pub struct Run {
    n: usize,
    d: usize,
    h: usize,
    w: Range<usize>,
    pub row: usize,
}

impl Run {
    pub fn len(&self) -> usize {
        self.w.len()
    }
}

/// Rows `first..first + len` of a block, whose source pixels are `source`, `source + step`, ..
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    pub first: usize,
    pub len: usize,
    pub source: usize,
    pub step: usize,
}

impl Map {
    /// Rows are output pixels, sources are input pixels: input = output * stride + tap - padding.
    pub fn convolution(g: &Geometry) -> Map {
        let axis = |a: usize| {
            let (rows, source) = (g.output[a], g.input[a]);
            let mut axis = Axis { rows, step: g.stride[a], taps: vec![], source, target: rows, start: 0, stride: 1 };
            (0..g.kernel[a]).for_each(|k| axis.tap(k, k as isize - g.padding[a] as isize));
            axis
        };
        Map::new(g, [axis(0), axis(1), axis(2)])
    }

    fn new(g: &Geometry, axes: [Axis; 3]) -> Map {
        let [d, h, w] = [0, 1, 2].map(|a| axes[a].taps.len());
        let taps = (0..d * h * w).map(|t| [t / (h * w), t / w % h, t % w]).collect();
        Map { batch: g.batch, axes, kernel: g.kernel, taps }
    }

    /// Rows are input pixels, sources are output pixels: output = (input + padding - tap) / stride where that is whole.
    pub fn transposed(g: &Geometry) -> Vec<Map> {
        let axis = |a: usize, start: usize| {
            let (s, reach) = (g.stride[a], (start + g.padding[a]) as isize);
            let rows = g.input[a].saturating_sub(start).div_ceil(s);
            let (source, target) = (g.output[a], g.input[a]);
            let mut axis = Axis { rows, step: 1, taps: vec![], source, target, start, stride: s };
            let distances = (0..g.kernel[a]).rev().map(|k| (k, reach - k as isize));
            for (k, distance) in distances.filter(|(_, distance)| distance.rem_euclid(s as isize) == 0) {
                axis.tap(k, distance.div_euclid(s as isize));
            }
            axis
        };
        let starts = [0, 1, 2].map(|a| g.stride[a].min(g.input[a]));
        let mut maps = Vec::new();
        for d in 0..starts[0] {
            for h in 0..starts[1] {
                for w in 0..starts[2] {
                    maps.push(Map::new(g, [axis(0, d), axis(1, h), axis(2, w)]));
                }
            }
        }
        maps
    }

    /// Row i meets source i: a plain matrix product.
    pub fn identity(rows: usize) -> Map {
        Map::convolution(&Geometry::identity(rows))
    }

    pub fn rows(&self) -> usize {
        self.batch * self.axes.iter().map(|a| a.rows).product::<usize>()
    }

    /// The map of a convolution with stride 1, or of the gradient of its input.
    pub fn neighbours(&self) -> Option<Neighbours> {
        let dense = |a: &Axis| {
            let neighbours = a.taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1);
            a.step == 1 && a.stride == 1 && a.rows == a.target && !a.taps.is_empty() && neighbours
        };
        let each = |of: fn(&Axis) -> usize| [0, 1, 2].map(|a| of(&self.axes[a]));
        self.axes.iter().all(dense).then(|| Neighbours {
            batch: self.batch,
            target: each(|a| a.rows),
            source: each(|a| a.source),
            taps: each(|a| a.taps.len()),
            offset: [0, 1, 2].map(|a| self.axes[a].taps[0].offset),
        })
    }

    /// Rows in a line along W.
    pub fn line_rows(&self) -> usize {
        self.axes[2].rows
    }

    pub fn taps(&self) -> usize {
        self.taps.len()
    }

    /// How many taps in a row make a line, which meet neighbouring pixels along W.
    pub fn line_taps(&self) -> usize {
        self.axes[2].taps.len()
    }

    /// Whether all rows meet the source under every tap.
    pub fn has_no_padding(&self) -> bool {
        self.axes.iter().all(|axis| axis.taps.iter().all(|tap| tap.first == 0 && tap.end == axis.rows))
    }

    /// Whether rows meet pixels under `tap` that none met before them, nor they under the taps before: under the last taps along D
    /// and H and the first along W, as many as neighbouring rows are apart.
    pub fn leads(&self, tap: usize) -> bool {
        let [d, h, w] = self.taps[tap];
        let last = |a: usize, t: usize| t + self.axes[a].step >= self.axes[a].taps.len();
        last(0, d) && last(1, h) && w < self.axes[2].step
    }

    /// Pixels between those that neighbouring rows meet under the same tap.
    pub fn line_step(&self) -> usize {
        self.axes[2].step
    }

    /// What a run meets under `taps` taps from `tap` on, neighbours along W, if the source has such a line.
    pub fn piece(&self, run: &Run, tap: usize, taps: usize) -> Option<Piece> {
        let w = &self.axes[2];
        let line = (self.source_line(run, tap)? * w.source) as isize;
        let start = (run.w.start * w.step) as isize + w.taps[self.taps[tap][2]].offset;
        let end = start + ((run.len() - 1) * w.step + taps) as isize;
        let [first, last] = [start, end].map(|at| at.clamp(0, w.source as isize));
        let before = (first - start).clamp(0, end - start);
        let source = (line + first) as usize..(line + last) as usize;
        let after = (end - start - before) as usize - source.len();
        Some(Piece { before: before as usize, source, after })
    }

    /// The line of the source (over all images) that a run meets under `tap`.
    pub fn source_line(&self, run: &Run, tap: usize) -> Option<usize> {
        let ([td, th, _], [d, h, _]) = (self.taps[tap], &self.axes);
        Some((run.n * d.source + d.meets(run.d, td)?) * h.source + h.meets(run.h, th)?)
    }

    /// The tap's position in the weight.
    pub fn kernel_tap(&self, tap: usize) -> usize {
        let [d, h, w] = self.taps[tap];
        let at = |a: usize, t: usize| self.axes[a].taps[t].kernel;
        (at(0, d) * self.kernel[1] + at(1, h)) * self.kernel[2] + at(2, w)
    }

    /// Splits a block of rows into runs within lines.
    pub fn runs(&self, rows: Range<usize>, runs: &mut Vec<Run>) {
        runs.clear();
        let wide = self.axes[2].rows;
        let mut at = rows.start;
        while at < rows.end {
            let [n, d, h, first] = self.position(at);
            let end = wide.min(first + rows.end - at);
            runs.push(Run { n, d, h, w: first..end, row: at - rows.start });
            at += end - first;
        }
    }

    /// Planes of rows in all images, and lines of a plane.
    pub fn planes(&self) -> [usize; 2] {
        [self.batch * self.axes[0].rows, self.axes[1].rows]
    }

    /// Some lines of some planes, whole, as the runs of a block in this order.
    pub fn lines(&self, [planes, lines]: [Range<usize>; 2], runs: &mut Vec<Run>) {
        let (depth, wide) = (self.axes[0].rows, self.line_rows());
        runs.clear();
        for plane in planes {
            for h in lines.clone() {
                runs.push(Run { n: plane / depth, d: plane % depth, h, w: 0..wide, row: runs.len() * wide });
            }
        }
    }

    /// Lines of the source that so many planes of so many lines of rows meet.
    pub fn lines_met(&self, rows: [usize; 2]) -> usize {
        (0..2).map(|a| (rows[a] - 1) * self.axes[a].step + self.axes[a].taps.len()).product()
    }

    /// Which of all rows a run begins with.
    pub fn first_row(&self, run: &Run) -> usize {
        let [d, h, w] = [0, 1, 2].map(|a| self.axes[a].rows);
        ((run.n * d + run.d) * h + run.h) * w + run.w.start
    }

    /// Target pixels of a run: the first one and the distance to the next.
    pub fn target(&self, run: &Run) -> (usize, usize) {
        let [d, h, w] = &self.axes;
        let line = (run.n * d.target + d.place(run.d)) * h.target + h.place(run.h);
        (line * w.target + w.place(run.w.start), w.stride)
    }

    /// Pixels between the sources of a row and of a later one under the same tap, and between their targets; none where the later one
    /// is not there. Padding counts as pixels of the line before or after, so that sources may lie backwards: the distances wrap.
    pub fn distances(&self, row: usize, later: usize) -> Option<[usize; 2]> {
        if later >= self.rows() {
            return None;
        }
        let [d, h, w] = &self.axes;
        let places = |row: usize| {
            let [n, id, ih, iw] = self.position(row);
            let source = ((n * d.source + id * d.step) * h.source + ih * h.step) * w.source + iw * w.step;
            let target = ((n * d.target + id * d.stride) * h.target + ih * h.stride) * w.target + iw * w.stride;
            [source, target]
        };
        let ([source, target], [later_source, later_target]) = (places(row), places(later));
        Some([later_source.wrapping_sub(source), later_target.wrapping_sub(target)])
    }

    /// A row as (n, d, h, w).
    fn position(&self, row: usize) -> [usize; 4] {
        let [d, h, w] = [0, 1, 2].map(|a| self.axes[a].rows);
        [row / w / h / d, row / w / h % d, row / w % h, row % w]
    }

    /// Which of the neighbouring targets along W that several maps share the map's rows begin with.
    pub fn turn(&self) -> usize {
        self.axes[2].start
    }

    /// The part of a run that meets the source under `tap`.
    pub fn met(&self, run: &Run, tap: usize) -> Option<Met> {
        let (line, tw, w) = (self.source_line(run, tap)?, self.taps[tap][2], &self.axes[2]);
        let (first, end) = (w.taps[tw].first.max(run.w.start), w.taps[tw].end.min(run.w.end));
        if first >= end {
            return None;
        }
        let source = line * w.source + w.meets(first, tw)?;
        Some(Met { first: run.row + first - run.w.start, len: end - first, source, step: w.step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (row's target pixel, kernel tap, source pixel) of all meetings, by the definition of a convolution.
    fn by_definition(g: &Geometry, transposed: bool) -> Vec<(usize, usize, usize)> {
        let line =
            |size: [usize; 3], n: usize, at: [usize; 3]| ((n * size[0] + at[0]) * size[1] + at[1]) * size[2] + at[2];
        let all = |size: [usize; 3]| {
            (0..size.iter().product()).map(move |i: usize| [i / size[2] / size[1], i / size[2] % size[1], i % size[2]])
        };
        let mut found = Vec::new();
        for n in 0..g.batch {
            for o in all(g.output) {
                for k in all(g.kernel) {
                    let at = [0, 1, 2].map(|a| (o[a] * g.stride[a] + k[a]).wrapping_sub(g.padding[a]));
                    if (0..3).all(|a| at[a] < g.input[a]) {
                        let (i, o, k) = (line(g.input, n, at), line(g.output, n, o), line(g.kernel, 0, k));
                        found.push(if transposed { (i, k, o) } else { (o, k, i) });
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }

    fn by_map(maps: &[Map], block: usize) -> Vec<(usize, usize, usize)> {
        let mut found = Vec::new();
        let mut runs = Vec::new();
        for map in maps {
            for start in (0..map.rows()).step_by(block) {
                map.runs(start..map.rows().min(start + block), &mut runs);
                for run in &runs {
                    let (target, stride) = map.target(run);
                    for tap in 0..map.taps() {
                        let Some(met) = map.met(run, tap) else { continue };
                        found.extend((0..met.len).map(|i| {
                            let row = met.first - run.row + i;
                            (target + row * stride, map.kernel_tap(tap), met.source + i * met.step)
                        }));
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn maps_meet_what_a_convolution_meets() {
        for (input, kernel, stride, padding) in [
            ([3, 4, 5], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
            ([5, 4, 7], [3, 2, 1], [2, 3, 1], [1, 0, 2]),
            ([4, 6, 4], [2, 2, 2], [2, 2, 2], [0, 0, 0]),
            ([2, 3, 1], [1, 1, 2], [3, 1, 2], [4, 5, 3]),
            ([7, 1, 5], [2, 1, 3], [4, 2, 5], [1, 0, 0]),
        ] {
            let output = [0, 1, 2].map(|a| (input[a] + 2 * padding[a] - kernel[a]) / stride[a] + 1);
            let g = Geometry { batch: 2, input, output, kernel, stride, padding };
            for block in [1, 7, 1000] {
                assert_eq!(by_map(&[Map::convolution(&g)], block), by_definition(&g, false), "{g:?}");
                assert_eq!(by_map(&Map::transposed(&g), block), by_definition(&g, true), "{g:?} transposed");
            }
            let rows: usize = Map::transposed(&g).iter().map(Map::rows).sum();
            assert_eq!(rows, 2 * input.iter().product::<usize>(), "every input pixel is one row");
        }
    }

    #[test]
    fn kernels_as_long_as_their_stride_are_folded() {
        let fold = |input: usize, kernel: usize, stride: usize, padding: usize| {
            let output = (input + 2 * padding - kernel) / stride + 1;
            let [input, output] = [[4, 4, input], [2, 2, output]];
            let [kernel, stride, padding] = [[2, 2, kernel], [2, 2, stride], [0, 0, padding]];
            let (g, folded) = Geometry { batch: 1, input, output, kernel, stride, padding }.fold();
            (g.input[2], g.kernel[2], g.stride[2], folded)
        };
        assert_eq!(fold(8, 2, 2, 0), (4, 1, 1, 2));
        assert_eq!(fold(9, 3, 3, 0), (3, 1, 1, 3));
        assert_eq!(fold(9, 2, 2, 0), (9, 2, 2, 1), "the last pixel is not met");
        assert_eq!(fold(8, 3, 2, 0), (8, 3, 2, 1), "pixels are met twice");
        assert_eq!(fold(8, 1, 2, 0), (8, 1, 2, 1), "pixels are left out");
        assert_eq!(fold(8, 2, 2, 2), (8, 2, 2, 1), "padding");
    }
}
