//! VoCo sampling: random crops, base crops and position labels of one volume.
//!
//! A sub-volume of `[grid·side, grid·side, side]` voxels is tiled by grid² base crops, base `b = grid·i + j` with i along x and j
//! along y. A random crop's label is the share of its x–y area in every base: y_b = dx·dy/side². Every crop is resized to roi³
//! where the geometry has another side, then augmented on its own; labels stay, because the task is where the content belongs.

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::transform;
use crate::volume::Volume;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// The geometry of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Random crops per volume (S).
    pub crops: usize,
    /// Side of every crop in voxels, as the network sees it; even.
    pub roi: usize,
    /// Bases per axis, at least 2.
    pub grid: usize,
    pub geometry: Geometry,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { crops: 2, roi: 64, grid: 3, geometry: Geometry::Voco }
    }
}

/// What one volume contributes to a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// `[S, roi, roi, roi]`
    pub crops: Vec<f32>,
    /// `[grid², roi, roi, roi]`
    pub bases: Vec<f32>,
    /// `[S, grid²]`, every row sums to 1.
    pub labels: Vec<f32>,
    /// `[x, y]` centres of the random crops, in voxels of the sub-volume.
    pub centres: Vec<[usize; 2]>,
}

/// Where one sample lies in its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// First voxel of the sub-volume in the volume; negative where the volume is padded.
    pub corner: [isize; 3],
    /// `[x, y]` centres of the random crops, in voxels of the sub-volume.
    pub centres: Vec<[usize; 2]>,
}

impl Sampling {
    /// Errors when crops could not be placed: no crops, an odd or empty roi, fewer than 2 bases per axis.
    pub fn check(&self) -> Result<()> {
        match self {
            Sampling { crops: 0, .. } => Err(Error::setting("0 crops per volume", "take at least 1")),
            Sampling { roi, .. } if *roi < 2 || roi % 2 == 1 => {
                Err(Error::setting(format!("a crop side of {roi} voxels"), "take an even number, such as 64"))
            }
            Sampling { roi, geometry: Geometry::Cvpr, .. } if roi % 4 != 0 => {
                Err(Error::setting(format!("a crop side of {roi} voxels"), "take a multiple of 4, such as 64"))
            }
            Sampling { grid, .. } if *grid < 2 => {
                Err(Error::setting(format!("{grid} bases per axis"), "take at least 2, such as 3"))
            }
            _ => Ok(()),
        }
    }

    /// Bases per volume (K).
    pub fn bases(&self) -> usize {
        self.grid * self.grid
    }

    /// Side in voxels of what is cut out for a crop.
    pub fn side(&self) -> usize {
        self.geometry.side(self.roi)
    }

    /// Voxels of the sub-volume along x, y, z.
    pub fn extent(&self) -> [usize; 3] {
        [self.grid * self.side(), self.grid * self.side(), self.side()]
    }

    /// Share of the crop around `[x, y]` in every base, `[grid²]`.
    pub fn label(&self, centre: [usize; 2]) -> Vec<f32> {
        let side = self.side();
        let span = centre.map(|c| transform::crop_range(c, side));
        let overlap = |axis: usize, base: usize| {
            let (low, high) = (base * side, (base + 1) * side);
            span[axis].end.min(high).saturating_sub(span[axis].start.max(low))
        };
        let area = (side * side) as f64;
        let share = |b: usize| (overlap(0, b / self.grid) * overlap(1, b % self.grid)) as f64 / area;
        (0..self.bases()).map(|b| share(b) as f32).collect()
    }

    /// Draws a sample of a processed volume (`[0, 1]`). All randomness comes from `seed`. Volumes smaller than the sub-volume
    /// are padded with 0 on both sides.
    pub fn draw(&self, volume: &Volume, seed: u64) -> Sample {
        let mut rng = Pcg64::seed_from_u64(seed);
        let place = self.random_place(volume.dims, &mut rng);
        let shift = self.geometry.shift_probability();
        self.sample(volume, &place, |cube| augment(cube, self.roi, shift, &mut rng))
    }

    /// [`Sampling::draw`] of a volume of `dims`, of which only the sub-volume is fetched: `fetch` gets its first voxel, negative
    /// where the volume is padded, and its size. The sample is the same.
    pub fn draw_from<E>(
        &self,
        dims: [usize; 3],
        seed: u64,
        fetch: impl FnOnce([isize; 3], [usize; 3]) -> Result<Volume, E>,
    ) -> Result<Sample, E> {
        let mut rng = Pcg64::seed_from_u64(seed);
        let place = self.random_place(dims, &mut rng);
        let volume = fetch(place.corner, self.extent())?;
        let shift = self.geometry.shift_probability();
        let place = Place { corner: [0; 3], ..place };
        Ok(self.sample(&volume, &place, |cube| augment(cube, self.roi, shift, &mut rng)))
    }

    /// Where [`Sampling::draw`] takes the sample of this seed from a volume of these dims.
    pub fn place(&self, dims: [usize; 3], seed: u64) -> Place {
        self.random_place(dims, &mut Pcg64::seed_from_u64(seed))
    }

    /// The sample at a place, without augmentation.
    pub fn plain(&self, volume: &Volume, place: &Place) -> Sample {
        self.sample(volume, place, |_| ())
    }

    fn random_place(&self, dims: [usize; 3], rng: &mut Pcg64) -> Place {
        let corner = self.random_corner(dims, rng);
        // the upper bound is exclusive: no crop lies flush with the far side
        let middle = self.side() / 2..self.grid * self.side() - self.side() / 2;
        let centres = (0..self.crops).map(|_| [0, 1].map(|_| rng.random_range(middle.clone()))).collect();
        Place { corner, centres }
    }

    /// Cuts the crops, then the bases, and passes each to `change`.
    fn sample(&self, volume: &Volume, place: &Place, mut change: impl FnMut(&mut [f32])) -> Sample {
        let Place { corner, centres } = place;
        let side = self.side();
        let starts = centres.iter().map(|c| c.map(|c| transform::crop_range(c, side).start));
        let crops = self.cut(volume, *corner, starts, &mut change);
        let tiles = (0..self.bases()).map(|b| [b / self.grid * side, b % self.grid * side]);
        let bases = self.cut(volume, *corner, tiles, &mut change);
        let labels = centres.iter().flat_map(|&c| self.label(c)).collect();
        Sample { crops, bases, labels, centres: centres.clone() }
    }

    /// First voxel of the sub-volume in the volume; negative where the volume is padded.
    fn random_corner(&self, dims: [usize; 3], rng: &mut Pcg64) -> [isize; 3] {
        let extent = self.extent();
        [0, 1, 2].map(|i| {
            let before = extent[i].saturating_sub(dims[i]) / 2;
            let room = dims[i].saturating_sub(extent[i]);
            rng.random_range(0..=room) as isize - before as isize
        })
    }

    /// Cubes at `[x, y]` offsets inside the sub-volume, each passed to `change`.
    fn cut(
        &self,
        volume: &Volume,
        corner: [isize; 3],
        offsets: impl ExactSizeIterator<Item = [usize; 2]>,
        change: &mut impl FnMut(&mut [f32]),
    ) -> Vec<f32> {
        let (cube, seen, side) = (self.roi.pow(3), [self.roi; 3], [self.side(); 3]);
        let mut out = Vec::with_capacity(offsets.len() * cube);
        for [x, y] in offsets {
            let low = [corner[0] + x as isize, corner[1] + y as isize, corner[2]];
            match seen == side {
                true => volume.append(low, side, &mut out),
                false => out.extend(transform::resize(&volume.extract(low, side), seen).data),
            }
            let first = out.len() - cube;
            change(&mut out[first..]);
        }
        out
    }
}

/// Flips along x, y, z (p = 0.2 each), 1 to 3 quarter turns in x–y (p = 0.2), a shift of U(−0.1, 0.1) (p = `shift`).
fn augment(cube: &mut [f32], n: usize, shift: f64, rng: &mut Pcg64) {
    for axis in 0..3 {
        if rng.random_bool(0.2) {
            transform::flip(cube, n, axis);
        }
    }
    if rng.random_bool(0.2) {
        transform::rot90(cube, n, rng.random_range(1..=3));
    }
    if rng.random_bool(shift) {
        transform::shift(cube, rng.random_range(-0.1..0.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::IDENTITY;

    const TINY: Sampling = Sampling { crops: 3, roi: 8, grid: 3, geometry: Geometry::Voco };

    fn numbered(dims: [usize; 3]) -> Volume {
        Volume { data: (0..dims.iter().product::<usize>()).map(|i| i as f32).collect(), dims, affine: IDENTITY }
    }

    #[test]
    fn labels_match_the_reference() {
        let label = |x, y| Sampling::default().label([x, y]).iter().map(|&y| y * 4096.0).collect::<Vec<_>>();
        assert_eq!(label(70, 100), [0.0, 1560.0, 104.0, 0.0, 2280.0, 152.0, 0.0, 0.0, 0.0]);
        assert_eq!(label(32, 32), [4096.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(label(159, 96), [0.0, 0.0, 0.0, 0.0, 64.0, 0.0, 0.0, 4032.0, 0.0]);
        assert_eq!(label(150, 60), [0.0, 0.0, 0.0, 360.0, 280.0, 0.0, 1944.0, 1512.0, 0.0]);
    }

    #[test]
    fn every_label_is_its_voxel_overlap_and_sums_to_one() {
        for sampling in [TINY, Sampling { roi: 4, grid: 2, ..TINY }] {
            let (roi, grid) = (sampling.roi, sampling.grid);
            for (x, y) in
                (roi / 2..grid * roi - roi / 2).flat_map(|x| (roi / 2..grid * roi - roi / 2).map(move |y| (x, y)))
            {
                let label = sampling.label([x, y]);
                let mut count = vec![0; grid * grid];
                for (i, j) in (x - roi / 2..x + roi / 2).flat_map(|i| (y - roi / 2..y + roi / 2).map(move |j| (i, j))) {
                    count[i / roi * grid + j / roi] += 1;
                }
                let want: Vec<f32> = count.iter().map(|&n| n as f32 / (roi * roi) as f32).collect();
                assert_eq!(label, want);
                assert_eq!(label.iter().sum::<f32>(), 1.0);
            }
        }
    }

    #[test]
    fn label_statistics_match_the_reference() {
        let s = Sampling::default();
        let all: Vec<Vec<f32>> = (32..160).flat_map(|x| (32..160).map(move |y| s.label([x, y]))).collect();
        let mean = |b: usize| all.iter().map(|l| l[b] as f64).sum::<f64>() / all.len() as f64;
        let positives = all.iter().flatten().filter(|&&y| y > 0.0).count() as f64 / all.len() as f64;
        assert!((positives - 3.94).abs() < 0.01);
        assert!((mean(4) - 0.25).abs() < 0.001 && (mean(1) - 0.125).abs() < 0.003 && (mean(0) - 0.063).abs() < 0.003);
    }

    #[test]
    fn crops_and_bases_hold_the_voxels_of_their_place() {
        let volume = numbered([24, 24, 8]);
        let place = |cube: &[f32]| {
            let low = cube.iter().fold(f32::INFINITY, |a, &b| a.min(b)).round() as usize;
            [low / 192, low / 8 % 24]
        };
        let sample = TINY.draw(&volume, 5);
        for (cube, centre) in sample.crops.chunks(512).zip(&sample.centres) {
            assert_eq!(place(cube), centre.map(|c| c - 4));
        }
        for (b, cube) in sample.bases.chunks(512).enumerate() {
            assert_eq!(place(cube), [b / 3 * 8, b % 3 * 8]);
        }
    }

    #[test]
    fn a_sample_depends_on_its_seed_alone() {
        let volume = numbered([30, 27, 11]);
        assert_eq!(TINY.draw(&volume, 1), TINY.draw(&volume, 1));
        assert_ne!(TINY.draw(&volume, 1).centres, TINY.draw(&volume, 2).centres);
    }

    #[test]
    fn a_plain_sample_lies_where_the_drawn_one_does() {
        let volume = numbered([30, 27, 5]);
        for seed in 0..20 {
            let place = TINY.place(volume.dims, seed);
            let (plain, drawn) = (TINY.plain(&volume, &place), TINY.draw(&volume, seed));
            assert_eq!((&plain.centres, &plain.labels), (&drawn.centres, &drawn.labels));
            let corner =
                [0, 1, 2].map(|i| place.corner[i] + [place.centres[0][0], place.centres[0][1], 4][i] as isize - 4);
            assert_eq!(plain.crops[..512], volume.extract(corner, [8; 3]).data);
        }
    }

    #[test]
    fn centres_cover_their_range_and_nothing_else() {
        let volume = numbered([24, 24, 8]);
        let centres: Vec<usize> = (0..300).flat_map(|seed| TINY.draw(&volume, seed).centres).flatten().collect();
        assert_eq!((centres.iter().min(), centres.iter().max()), (Some(&4), Some(&19)));
    }

    #[test]
    fn small_volumes_are_padded_in_the_middle() {
        let volume = Volume { data: vec![1.0], dims: [1, 1, 1], affine: IDENTITY };
        let sample = TINY.draw(&volume, 3);
        let bright: Vec<usize> = (0..9).filter(|b| sample.bases[b * 512..][..512].iter().any(|&v| v > 0.5)).collect();
        assert_eq!(bright, [4]);
    }

    #[test]
    fn augmentations_come_at_their_rates() {
        [Geometry::Voco, Geometry::Cvpr].into_iter().for_each(rates);
    }

    fn rates(geometry: Geometry) {
        let shift = geometry.shift_probability();
        let plain: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let mut rng = Pcg64::seed_from_u64(1);
        let n = 20_000;
        let (mut moved, mut shifted) = (0, 0);
        for _ in 0..n {
            let mut cube = plain.clone();
            augment(&mut cube, 2, shift, &mut rng);
            let low = cube.iter().fold(f32::INFINITY, |a, &b| a.min(b));
            shifted += (low != 0.0) as usize;
            moved += cube.iter().zip(&plain).any(|(a, b)| (a - low - b).abs() > 0.5) as usize;
            assert!(low.abs() <= 0.1);
        }
        // still in place: nothing drawn, or both x and y flipped and turned twice
        let still = 0.8f64.powi(4) + 0.2 * 0.2 * 0.8 * 0.2 / 3.0;
        assert!((shifted as f64 / n as f64 - shift).abs() < 0.015);
        assert!((moved as f64 / n as f64 - (1.0 - still)).abs() < 0.015);
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let narrow = Sampling { roi: 6, geometry: Geometry::Cvpr, ..TINY };
        assert!(Sampling { roi: 8, ..narrow }.check().is_ok());
        for bad in [Sampling { crops: 0, ..TINY }, Sampling { roi: 7, ..TINY }, Sampling { grid: 1, ..TINY }, narrow] {
            assert!(bad.check().is_err());
        }
    }
}
