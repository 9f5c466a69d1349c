//! From slices, in whatever order a file holds its axes, to a volume with z contiguous, resampled on the way.
//!
//! A slice is interpolated within its plane while it lies in the cache, then along the axis of the slices, and turned in slabs: neither
//! the file's voxels nor any step between stand in memory as a whole.

use crate::affine::{self, Affine, Axis};
use crate::error::Result;
use crate::interpolate::Tap;
use crate::volume::Volume;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;

/// Slices turned at a time, and side of a tile: 16 floats along z are one cache line.
const SLAB: usize = 16;
/// Slices that are interpolated side by side at most: more threads would wait for the file.
const MOST_RAW: usize = 8;

/// A volume that yields itself slice by slice.
pub(crate) trait Slices: Send {
    fn dims(&self) -> [usize; 3];
    fn affine(&self) -> Affine;
    /// Axes that slices follow each other along, rows within a slice, and voxels within a row.
    fn order(&self) -> [usize; 3];
    /// Fills `slice` with the next one.
    fn next(&mut self, slice: &mut [f32]) -> Result<()>;
    /// After the last slice that is wanted: errors where what is left, or all together, is damaged.
    fn finish(&mut self) -> Result<()>;
}

/// Slices of a volume in memory.
pub(crate) struct Planes<'a> {
    volume: &'a Volume,
    next: usize,
}

impl<'a> Planes<'a> {
    pub(crate) fn of(volume: &'a Volume) -> Planes<'a> {
        Planes { volume, next: 0 }
    }
}

impl Slices for Planes<'_> {
    fn dims(&self) -> [usize; 3] {
        self.volume.dims
    }

    fn affine(&self) -> Affine {
        self.volume.affine
    }

    fn order(&self) -> [usize; 3] {
        [0, 1, 2]
    }

    fn next(&mut self, slice: &mut [f32]) -> Result<()> {
        slice.copy_from_slice(&self.volume.data[self.next * slice.len()..][..slice.len()]);
        self.next += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// All voxels, as the volume whose axis `i` is axis `axes[i].from`.
pub(crate) fn whole(slices: &mut dyn Slices, axes: [Axis; 3]) -> Result<Volume> {
    let affine = affine::reoriented(&slices.affine(), slices.dims(), axes);
    let dims = axes.map(|axis| slices.dims()[axis.from]);
    let data = collect(slices, axes, dims.map(|n| (0..n).map(Tap::only).collect()))?;
    Ok(Volume { data, dims, affine })
}

/// The voxels of the volume whose axis `i` is axis `axes[i].from` of `slices`, interpolated at `taps[i]`, which count along the axis as
/// it is after a flip.
pub(crate) fn collect(slices: &mut dyn Slices, axes: [Axis; 3], taps: [Vec<Tap>; 3]) -> Result<Vec<f32>> {
    let (inputs, order) = (slices.dims(), slices.order());
    let dims = [0, 1, 2].map(|i| taps[i].len());
    let to = order.map(|from| (0..3).find(|&i| axes[i].from == from).unwrap_or(from));
    let mut taps = taps;
    let [along, rows, columns] = to.map(|i| {
        let n = inputs[axes[i].from];
        taps[i].iter_mut().filter(|_| axes[i].flip).for_each(|tap| *tap = tap.flipped(n));
        std::mem::take(&mut taps[i])
    });
    let mut slab = Slab::new([along.len(), rows.len(), columns.len()]);
    let mut window = Window::new(order.map(|axis| inputs[axis]), rows, columns);
    let mut out = vec![0.0; dims.iter().product()]; // untouched pages cost nothing until the file proves to be that long
    let mut blocks: Vec<Range<usize>> =
        (0..along.len()).step_by(SLAB).map(|first| first..along.len().min(first + SLAB)).collect();
    if axes[to[0]].flip {
        blocks.reverse();
    }
    for block in blocks {
        window.advance(slices, &along[block.clone()])?;
        slab.fill(&window, &along[block.clone()]);
        slab.turn(block, to, dims, &mut out);
    }
    slices.finish()?;
    Ok(out)
}

/// Slices that are needed at a time, each interpolated within its plane.
struct Window {
    /// Voxels of a row as it comes.
    width: usize,
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    /// Empty where no output needs the slice.
    held: VecDeque<Vec<f32>>,
    /// Number of the first that is held.
    first: usize,
    /// Slices as they come, those that are interpolated side by side.
    raw: Vec<Vec<f32>>,
}

impl Window {
    /// Of `count` slices of `height` rows of `width` voxels.
    fn new([count, height, width]: [usize; 3], rows: Vec<Tap>, columns: Vec<Tap>) -> Window {
        let raw = rayon::current_num_threads().min(count).min(MOST_RAW);
        let raw = (0..raw).map(|_| vec![0.0; height * width]).collect();
        Window { width, rows, columns, held: VecDeque::new(), first: 0, raw }
    }

    /// Holds what `taps` need, and nothing from before it.
    fn advance(&mut self, slices: &mut dyn Slices, taps: &[Tap]) -> Result<()> {
        let needed = |z: usize| taps.iter().any(|tap| tap.uses(z));
        let first = taps.iter().map(|tap| tap.ends()[0]).min().unwrap_or(self.first);
        let past = taps.iter().map(|tap| tap.ends()[1] + 1).max().unwrap_or(self.first);
        let mut next = self.first + self.held.len();
        while next < past {
            let count = self.raw.len().min(past - next);
            self.raw[..count].iter_mut().try_for_each(|raw| slices.next(raw))?;
            let planes = self.raw[..count].par_iter().enumerate();
            let planes = planes.map(|(i, raw)| if needed(next + i) { self.plane(raw) } else { Vec::new() });
            let planes: Vec<_> = planes.collect();
            self.held.extend(planes);
            next += count;
        }
        self.held.drain(..first - self.first);
        self.first = first;
        Ok(())
    }

    /// Row by row, so that a row is still in the nearest cache when its voxels are picked.
    fn plane(&self, raw: &[f32]) -> Vec<f32> {
        let mut row = vec![0.0; self.width];
        let mut plane = Vec::with_capacity(self.rows.len() * self.columns.len());
        for tap in &self.rows {
            tap.mix_lines(|y| &raw[y * self.width..][..self.width], &mut row);
            plane.extend(self.columns.iter().map(|tap| tap.of(&row)));
        }
        plane
    }
}

/// Some slices of the output, as the file has them.
struct Slab {
    data: Vec<f32>,
    /// Floats from one slice, row and column to the next. Slices begin a cache line apart from where they would lie on top of each
    /// other in the caches, for planes of 512 x 512 voxels.
    strides: [usize; 3],
    plane: usize,
}

impl Slab {
    /// Room for slices of so many rows and columns, as many as are turned at a time of all `size[0]`.
    fn new(size: [usize; 3]) -> Slab {
        let plane = size[1] * size[2];
        let strides = [plane + SLAB, size[2], 1];
        Slab { data: vec![0.0; size[0].min(SLAB) * strides[0]], strides, plane }
    }

    fn fill(&mut self, window: &Window, taps: &[Tap]) {
        let slices = self.data.par_chunks_mut(self.strides[0]).zip(taps);
        slices.for_each(|(slice, tap)| tap.mix_lines(|z| &window.held[z - window.first][..], &mut slice[..self.plane]));
    }

    /// Writes the slices to their place in a volume of `dims`: number `range` along its axis `to[0]`, rows along `to[1]`, and columns
    /// along `to[2]`.
    fn turn(&self, range: Range<usize>, to: [usize; 3], dims: [usize; 3], out: &mut [f32]) {
        let (mut first, mut size, mut step) = ([0; 3], dims, [0; 3]);
        (first[to[0]], size[to[0]]) = (range.start, range.len());
        (0..3).for_each(|axis| step[to[axis]] = self.strides[axis]);
        let plane = dims[1] * dims[2];
        let planes = &mut out[first[0] * plane..][..size[0] * plane];
        planes.par_chunks_mut(SLAB * plane).enumerate().for_each(|(block, planes)| {
            let from = &self.data[block * SLAB * step[0]..];
            let (width, out) = (planes.len() / plane, &mut planes[first[1] * dims[2] + first[2]..]);
            match step {
                [1, ..] => (0..size[1]).for_each(|y| {
                    transpose(&from[y * step[1]..], step[2], [width, size[2]], &mut out[y * dims[2]..], plane)
                }),
                [_, 1, _] => (0..width).for_each(|x| {
                    transpose(&from[x * step[0]..], step[2], [size[1], size[2]], &mut out[x * plane..], dims[2])
                }),
                _ => (0..width * size[1]).for_each(|line| {
                    let (x, y) = (line / size[1], line % size[1]);
                    let line = &from[x * step[0] + y * step[1]..][..size[2]];
                    out[x * plane + y * dims[2]..][..size[2]].copy_from_slice(line);
                }),
            }
        });
    }
}

/// out\[a·`pitch` + b\] = from\[a + b·`step`\] for a and b below `size`, in tiles, so that every cache line is read and written once.
fn transpose(from: &[f32], step: usize, size: [usize; 2], out: &mut [f32], pitch: usize) {
    for (a, b) in (0..size[0]).step_by(SLAB).flat_map(|a| (0..size[1]).step_by(SLAB).map(move |b| (a, b))) {
        let height = (size[1] - b).min(SLAB);
        for a in a..size[0].min(a + SLAB) {
            let line = &mut out[a * pitch + b..][..height];
            (b..).zip(line).for_each(|(b, v)| *v = from[a + b * step]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::IDENTITY;
    use crate::interpolate::separable;

    /// A volume whose voxels come with x or y contiguous.
    struct Other {
        volume: Volume,
        order: [usize; 3],
        next: usize,
        finished: bool,
    }

    impl Slices for Other {
        fn dims(&self) -> [usize; 3] {
            self.volume.dims
        }

        fn affine(&self) -> Affine {
            self.volume.affine
        }

        fn order(&self) -> [usize; 3] {
            self.order
        }

        fn next(&mut self, slice: &mut [f32]) -> Result<()> {
            let (dims, [along, rows, columns]) = (self.volume.dims, self.order);
            assert_eq!(slice.len(), dims[rows] * dims[columns]);
            for (i, v) in slice.iter_mut().enumerate() {
                let mut at = [0; 3];
                (at[along], at[rows], at[columns]) = (self.next, i / dims[columns], i % dims[columns]);
                *v = self.volume.data[(at[0] * dims[1] + at[1]) * dims[2] + at[2]];
            }
            self.next += 1;
            Ok(())
        }

        fn finish(&mut self) -> Result<()> {
            self.finished = true;
            Ok(())
        }
    }

    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

    fn noise(dims: [usize; 3]) -> Volume {
        let data = (0..dims.iter().product::<usize>() as u64).map(|i| engine::random::uniform(3, i) as f32).collect();
        Volume { data, dims, affine: IDENTITY }
    }

    /// Every order of the file's axes, and every way to turn them.
    fn every(mut check: impl FnMut([usize; 3], [Axis; 3])) {
        for (order, (from, flips)) in
            ORDERS.iter().flat_map(|o| ORDERS.iter().flat_map(move |f| (0..8).map(move |flips| (*o, (f, flips)))))
        {
            check(order, [0, 1, 2].map(|i| Axis { from: from[i], flip: flips >> i & 1 == 1 }));
        }
    }

    #[test]
    fn any_order_of_slices_becomes_the_turned_volume() {
        for dims in [[18, 5, 33], [1, 17, 2], [16, 1, 1]] {
            let volume = noise(dims);
            every(|order, axes| {
                let mut slices = Other { volume: volume.clone(), order, next: 0, finished: false };
                assert!(whole(&mut slices, axes).unwrap() == volume.clone().reoriented(axes), "{order:?} {axes:?}");
                assert!(slices.finished);
            });
        }
    }

    #[test]
    fn slices_are_interpolated_as_a_whole_volume_is() {
        let volume = noise([19, 4, 35]);
        every(|order, axes| {
            let dims = axes.map(|axis| volume.dims[axis.from]);
            // along one axis four are left out of five, along another there are three for one
            let scale = [2.6, 0.3, 0.9];
            let taps = [0, 1, 2].map(|i| {
                let count = (dims[i] as f64 / scale[i]) as usize + 1;
                (0..count).map(|o| Tap::at(o as f64 * scale[i], dims[i])).collect::<Vec<_>>()
            });
            let want = separable(&volume.clone().reoriented(axes).data, dims, taps.clone());
            let mut slices = Other { volume: volume.clone(), order, next: 0, finished: false };
            let got = collect(&mut slices, axes, taps).unwrap();
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "{order:?} {axes:?}");
        });
    }

    #[test]
    fn an_infinite_voxel_does_not_reach_beyond_its_neighbours() {
        let data = vec![1.0, 2.0, f32::INFINITY, 4.0, 5.0];
        let volume = Volume { data, dims: [1, 1, 5], affine: IDENTITY };
        let axes = [0, 1, 2].map(|from| Axis { from, flip: false });
        let taps = [vec![Tap::only(0)], vec![Tap::only(0)], (0..5).map(|i| Tap::at(i as f64, 5)).collect()];
        assert_eq!(collect(&mut Planes::of(&volume), axes, taps).unwrap(), volume.data);
    }
}
