//! Where bases and crops lie, and how much of a crop lies in every base, counted voxel by voxel.

use crate::{Error, Result};
use data::transform::crop_range;
use data::{Place, Sampling, Volume};

/// Voxels of the largest sub-volume that is counted, and bases that a table and a picture still show.
const MOST_VOXELS: usize = 1 << 26;
const MOST_BASES: usize = 1024;
const MOST_CROPS: usize = 64;

/// A box of voxels of the volume: the first, and one past the last. Negative where the volume is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub low: [isize; 3],
    pub high: [isize; 3],
}

impl Bounds {
    pub fn new(low: [isize; 3], size: [usize; 3]) -> Self {
        Bounds { low, high: [0, 1, 2].map(|i| low[i] + size[i] as isize) }
    }

    /// The smallest box around both.
    pub fn around(self, other: Bounds) -> Bounds {
        Bounds {
            low: [0, 1, 2].map(|i| self.low[i].min(other.low[i])),
            high: [0, 1, 2].map(|i| self.high[i].max(other.high[i])),
        }
    }

    pub fn middle(&self) -> [isize; 3] {
        [0, 1, 2].map(|i| self.low[i] + (self.high[i] - self.low[i]) / 2)
    }

    /// Whether voxel `at` of `axis` lies inside.
    pub fn spans(&self, axis: usize, at: isize) -> bool {
        (self.low[axis]..self.high[axis]).contains(&at)
    }

    pub fn size(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| (self.high[i] - self.low[i]).max(0) as usize)
    }
}

/// One sample's boxes in the volume.
#[derive(Debug)]
pub struct Layout {
    pub region: Bounds,
    pub bases: Vec<Bounds>,
    pub crops: Vec<Crop>,
}

#[derive(Debug)]
pub struct Crop {
    /// `[x, y]` in voxels of the sub-volume.
    pub centre: [usize; 2],
    pub bounds: Bounds,
    /// Share of the crop in every base, as training uses it.
    pub label: Vec<f32>,
    /// Voxels of the crop in every base.
    pub counted: Vec<usize>,
}

/// Errors when crops cannot be placed, or the geometry is too large to count and to draw.
pub fn check(sampling: &Sampling) -> Result<()> {
    sampling.check()?;
    let Sampling { crops, grid, .. } = *sampling;
    let side = sampling.side();
    let voxels = [grid, side, grid, side, side].into_iter().try_fold(1, usize::checked_mul);
    let bases = grid.checked_mul(grid);
    if voxels.is_none_or(|n| n > MOST_VOXELS) || bases.is_none_or(|n| n > MOST_BASES) || crops > MOST_CROPS {
        return Err(Error::Message(format!(
            "{crops} crops of {side} voxels a side on a grid of {grid}: too much to draw; take smaller --crops, --roi or --grid"
        )));
    }
    Ok(())
}

impl Layout {
    pub fn new(sampling: &Sampling, place: &Place) -> Self {
        let (side, grid) = (sampling.side(), sampling.grid);
        let cube = |x: usize, y: usize| {
            let [left, front, bottom] = place.corner;
            Bounds::new([left + x as isize, front + y as isize, bottom], [side; 3])
        };
        let region = Bounds::new(place.corner, sampling.extent());
        let bases: Vec<Bounds> = (0..grid * grid).map(|b| cube(b / grid * side, b % grid * side)).collect();
        let boxes = place.centres.iter().map(|&centre| {
            let [x, y] = centre.map(|c| crop_range(c, side).start);
            (centre, cube(x, y))
        });
        let owners = owners(region, &bases);
        let crops = boxes
            .map(|(centre, bounds)| {
                let counted = count(&owners, region, bounds, bases.len());
                Crop { centre, bounds, label: sampling.label(centre), counted }
            })
            .collect();
        Layout { region, bases, crops }
    }

    /// Errors when a label is not the share of voxels that was counted, or a crop is not covered by the bases exactly once.
    pub fn verify(&self) -> Result<()> {
        self.crops.iter().enumerate().try_for_each(|(number, crop)| crop.verify(number))
    }
}

impl Crop {
    pub fn voxels(&self) -> usize {
        self.bounds.size().iter().product()
    }

    fn verify(&self, number: usize) -> Result<()> {
        let voxels = self.voxels();
        let covered: usize = self.counted.iter().sum();
        if covered != voxels {
            return Err(wrong(format!("crop {number}: the bases cover {covered} of its {voxels} voxels")));
        }
        for (base, (&label, &counted)) in self.label.iter().zip(&self.counted).enumerate() {
            let share = (counted as f64 / voxels as f64) as f32;
            if label.is_nan() || label != share {
                return Err(wrong(format!(
                    "crop {number} at {:?}: its label for base {base} is {label}, but {counted} of its {voxels} voxels lie there ({share})",
                    self.centre
                )));
            }
        }
        Ok(())
    }
}

fn wrong(what: String) -> Error {
    Error::Message(format!("{what}; the labels are wrong: please report this, with the command"))
}

/// Every voxel of `region` with the number of its base, from 1.
fn owners(region: Bounds, bases: &[Bounds]) -> Volume<u16> {
    let dims = region.size();
    let mut data = vec![0; dims.iter().product()];
    for (number, base) in (1..).zip(bases) {
        let [x, y, z] = [0, 1, 2].map(|i| {
            let [low, high] = [base.low[i], base.high[i]].map(|at| (at - region.low[i]) as usize);
            low..high
        });
        for row in x.flat_map(|x| y.clone().map(move |y| (x * dims[1] + y) * dims[2])) {
            data[row + z.start..row + z.end].fill(number);
        }
    }
    Volume { data, dims, affine: data::affine::IDENTITY }
}

/// Voxels of `crop` in every base: the crop is cut out of the numbered voxels as training cuts it out of the grey ones.
fn count(owners: &Volume<u16>, region: Bounds, crop: Bounds, bases: usize) -> Vec<usize> {
    let start = [0, 1, 2].map(|i| crop.low[i] - region.low[i]);
    let mut counted = vec![0; bases];
    for owner in owners.extract(start, crop.size()).data {
        if let Some(n) = usize::from(owner).checked_sub(1).and_then(|base| counted.get_mut(base)) {
            *n += 1;
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::Geometry;

    /// Geometries that the generator `engine::random` picks.
    fn random(case: u64) -> (Sampling, [usize; 3]) {
        let pick = |what, low: usize, high: usize| {
            low + (engine::random::derive(case, &[what]) % (high - low + 1) as u64) as usize
        };
        let (crops, roi, grid) = (pick(0, 1, 4), 2 * pick(1, 1, 9), pick(2, 2, 6));
        let sampling = Sampling { crops, roi, grid, geometry: Geometry::Voco };
        (sampling, [3, 4, 5].map(|axis| pick(axis, 1, 120)))
    }

    #[test]
    fn labels_are_the_counted_overlaps_of_many_geometries() {
        for case in 0..400 {
            let (mut sampling, dims) = random(case);
            if sampling.roi.is_multiple_of(4) {
                sampling.geometry = Geometry::Cvpr;
            }
            let layout = Layout::new(&sampling, &sampling.place(dims, case));
            layout.verify().unwrap_or_else(|e| panic!("{sampling:?} in {dims:?}: {e}"));
            for crop in &layout.crops {
                assert_eq!(crop.counted.iter().sum::<usize>(), sampling.side().pow(3));
                assert!((crop.label.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_wrong_label_is_found() {
        let (sampling, dims) = (Sampling { roi: 8, ..Sampling::default() }, [30, 30, 10]);
        let layout = || Layout::new(&sampling, &sampling.place(dims, 1));
        for base in 0..9 {
            for wrong in [f32::NAN, 1.5, -0.01] {
                let mut layout = layout();
                layout.crops[1].label[base] = wrong;
                let error = layout.verify().unwrap_err().to_string();
                assert!(error.contains("crop 1") && error.contains(&format!("base {base}")), "{error}");
            }
        }
        let mut swapped = layout();
        let label = &mut swapped.crops[0].label;
        let covered: Vec<usize> = (0..9).filter(|&base| label[base] > 0.0).collect();
        let empty = (0..9).find(|&base| label[base] == 0.0).expect("a crop meets at most four bases");
        label.swap(covered[0], empty);
        assert!(swapped.verify().is_err());
    }

    #[test]
    fn a_crop_beside_the_bases_is_found() {
        let sampling = Sampling { crops: 1, roi: 8, grid: 2, ..Sampling::default() };
        let place = Place { corner: [0; 3], centres: vec![[14, 8]] };
        let error = Layout::new(&sampling, &place).verify().unwrap_err().to_string();
        assert!(error.contains("cover 384 of its 512"), "{error}");
    }

    #[test]
    fn training_cuts_its_cubes_out_of_these_boxes() {
        for case in 0..60 {
            let (sampling, dims) = random(case);
            let data = (0..dims.iter().product::<usize>()).map(|i| i as f32 + 1.0).collect();
            let volume = Volume { data, dims, affine: data::affine::IDENTITY };
            let place = sampling.place(dims, case);
            let (layout, sample) = (Layout::new(&sampling, &place), sampling.plain(&volume, &place));
            let cube = |b: &Bounds| volume.extract(b.low, b.size()).data;
            assert_eq!(layout.crops.iter().flat_map(|c| cube(&c.bounds)).collect::<Vec<_>>(), sample.crops);
            assert_eq!(layout.bases.iter().flat_map(cube).collect::<Vec<_>>(), sample.bases);
        }
    }

    #[test]
    fn boxes_count_bases_along_x_first_and_may_begin_outside() {
        let sampling = Sampling { roi: 4, grid: 2, ..Sampling::default() };
        let layout = Layout::new(&sampling, &Place { corner: [3, -2, 1], centres: vec![[2, 5], [4, 3]] });
        assert_eq!(layout.bases[1], Bounds { low: [3, 2, 1], high: [7, 6, 5] });
        assert_eq!(layout.bases[2], Bounds { low: [7, -2, 1], high: [11, 2, 5] });
        assert_eq!(layout.crops[1].bounds, Bounds { low: [5, -1, 1], high: [9, 3, 5] });
        assert_eq!(layout.region, Bounds { low: [3, -2, 1], high: [11, 6, 5] });
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let usual = Sampling::default();
        assert!(check(&usual).is_ok());
        for bad in [
            Sampling { crops: 65, ..usual },
            Sampling { crops: 0, ..usual },
            Sampling { roi: 4096, ..usual },
            Sampling { roi: usize::MAX - 1, ..usual },
            Sampling { grid: usize::MAX, ..usual },
            Sampling { grid: 33, roi: 2, ..usual },
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
