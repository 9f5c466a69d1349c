//! Body-like CT volumes made from formulas, for demos and tests without patients.
//!
//! A trunk is drawn in its own coordinates: x to the right and y to the front in body half-widths, z upwards in half the height
//! of the scan. Organs are ellipsoids and tubes that keep their order from patient to patient, while size, place, pose and grey
//! values differ. So where a crop comes from can be told from what it shows, as in real bodies.

use crate::affine::{self, Affine};
use crate::error::Result;
use crate::nifti;
use crate::volume::Volume;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Voxels `[x, y, z]` and voxel size in mm of [`write_set`].
pub const DIMS: [usize; 3] = [220, 220, 90];
pub const SPACING: [f64; 3] = [1.5; 3];

/// Names of the labels 1, 2, …; 0 is everything else.
pub const ORGANS: [&str; 14] = [
    "right lung",
    "left lung",
    "heart",
    "liver",
    "spleen",
    "stomach",
    "pancreas",
    "right kidney",
    "left kidney",
    "bowel",
    "bladder",
    "bone",
    "aorta",
    "vena cava",
];

/// Standard deviation of the noise, in HU.
const NOISE: f64 = 12.0;

/// A synthetic patient: image in HU and labels (index into [`ORGANS`] plus 1), oriented RAS.
#[derive(Debug, Clone, PartialEq)]
pub struct Phantom {
    pub image: Volume<i16>,
    pub labels: Volume<u8>,
}

impl Phantom {
    /// The image as the deterministic chain takes it.
    pub fn hu(&self) -> Volume {
        let data = self.image.data.iter().map(|&v| v as f32).collect();
        Volume { data, dims: self.image.dims, affine: self.image.affine }
    }
}

/// Patient `index` of the family `seed`, always the same for the same arguments. `spacing` in mm.
pub fn generate(seed: u64, index: u64, dims: [usize; 3], spacing: [f64; 3]) -> Phantom {
    let seed = engine::random::derive(seed, &[index]);
    let mut rng = Pcg64::seed_from_u64(seed);
    let affine = scanner(dims, spacing);
    let pose = pose(dims, spacing, &mut rng);
    let organs = organs(&mut rng);
    let mut image = vec![0i16; dims.iter().product()];
    let mut labels = vec![0u8; image.len()];
    let rows = image.par_chunks_mut(dims[2].max(1)).zip(labels.par_chunks_mut(dims[2].max(1))).enumerate();
    rows.with_min_len(16).for_each(|(row, (image, labels))| {
        let (x, y) = ((row / dims[1]) as f64, (row % dims[1]) as f64);
        for (z, (hu, label)) in image.iter_mut().zip(labels).enumerate() {
            let at = affine::apply(&pose, affine::apply(&affine, [x, y, z as f64]));
            let (value, organ) = tissue(at, &organs);
            *hu = (value + NOISE * noise(seed, (row * dims[2] + z) as u64)).round().max(-1024.0) as i16;
            *label = organ;
        }
    });
    Phantom { image: Volume { data: image, dims, affine }, labels: Volume { data: labels, dims, affine } }
}

/// Writes `phantom_000_ct.nii.gz` and `phantom_000_labels.nii.gz`, … and returns the images' paths. `written` hears of each
/// image once both files are there, in any order.
///
/// Errors: a folder that cannot be made or written to.
pub fn write_set(folder: &Path, count: usize, seed: u64, written: &(impl Fn(&Path) + Sync)) -> Result<Vec<PathBuf>> {
    let io = |e| crate::Error::io(folder, e, "name a folder that can be written to");
    std::fs::create_dir_all(folder).map_err(io)?;
    let path = |index: usize, what: &str| folder.join(format!("phantom_{index:03}_{what}.nii.gz"));
    let there = (0..count).flat_map(|index| [path(index, "ct"), path(index, "labels")]).find(|path| path.exists());
    if let Some(path) = there {
        return Err(crate::Error::file(&path, "is there already", "remove it, or name another folder"));
    }
    let one = |index: usize| {
        let phantom = generate(seed, index as u64, DIMS, SPACING);
        let image = path(index, "ct");
        nifti::write_image(&image, &phantom.image)?;
        nifti::write_label(&path(index, "labels"), &phantom.labels)?;
        written(&image);
        Ok(image)
    };
    (0..count).into_par_iter().map(one).collect()
}

/// Voxels to mm, the origin in the middle.
fn scanner(dims: [usize; 3], spacing: [f64; 3]) -> Affine {
    let mut a = affine::IDENTITY;
    for i in 0..3 {
        a[i][i] = spacing[i];
        a[i][3] = -spacing[i] * (dims[i] as f64 - 1.0) / 2.0;
    }
    a
}

/// Millimetres to body coordinates: this patient's size, place, turn and lean.
fn pose(dims: [usize; 3], spacing: [f64; 3], rng: &mut Pcg64) -> Affine {
    let extent = [0, 1, 2].map(|i| dims[i] as f64 * spacing[i]);
    let half =
        [0.42 * extent[0] * vary(rng, 0.08), 0.31 * extent[1] * vary(rng, 0.1), 0.5 * extent[2] * vary(rng, 0.08)];
    let (sin, cos) = (0.12 * spread(rng)).sin_cos();
    let shift = [0.03 * spread(rng), 0.03 * spread(rng), 0.08 * spread(rng)];
    // small tilts and a shear: x and y drift along z, x along y
    let (tilt_x, tilt_y, shear) = (0.06 * spread(rng), 0.06 * spread(rng), 0.05 * spread(rng));
    let rows = [[cos, -sin + shear, tilt_x], [sin, cos, tilt_y], [0.0, 0.0, 1.0]];
    let mut pose = affine::IDENTITY;
    for i in 0..3 {
        (0..3).for_each(|j| pose[i][j] = rows[i][j] / half[i]);
        pose[i][3] = shift[i];
    }
    pose
}

/// Uniform in [−1, 1].
fn spread(rng: &mut Pcg64) -> f64 {
    rng.random_range(-1.0..1.0)
}

/// A factor within 1 ± `by`.
fn vary(rng: &mut Pcg64, by: f64) -> f64 {
    1.0 + by * spread(rng)
}

/// An ellipsoid, or with an infinite radius along z a tube.
struct Organ {
    centre: [f64; 3],
    /// 1 / radius
    inverse: [f64; 3],
    hu: f64,
    label: u8,
}

impl Organ {
    fn holds(&self, at: [f64; 3]) -> bool {
        let d = [0, 1, 2].map(|i| (at[i] - self.centre[i]) * self.inverse[i]);
        d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < 1.0
    }
}

/// Label, HU, how much HU differs between patients, centre, radii. Later ones cover earlier ones.
type Plan = (u8, f64, f64, [f64; 3], [f64; 3]);

const TUBE: f64 = f64::INFINITY;
const ANATOMY: [Plan; 23] = [
    (1, -820.0, 40.0, [0.42, 0.0, 0.95], [0.31, 0.6, 0.5]),
    (2, -820.0, 40.0, [-0.42, 0.0, 0.95], [0.29, 0.6, 0.46]),
    (3, 90.0, 50.0, [-0.12, 0.28, 0.98], [0.28, 0.34, 0.3]),
    (4, 85.0, 30.0, [0.38, 0.08, 0.3], [0.4, 0.54, 0.36]),
    (4, 85.0, 30.0, [0.06, 0.36, 0.34], [0.32, 0.24, 0.2]),
    (5, 95.0, 30.0, [-0.58, -0.18, 0.34], [0.18, 0.26, 0.24]),
    (6, 30.0, 20.0, [-0.3, 0.36, 0.28], [0.25, 0.24, 0.24]),
    (6, -880.0, 30.0, [-0.3, 0.46, 0.34], [0.12, 0.1, 0.1]),
    (7, 70.0, 20.0, [-0.04, 0.08, 0.06], [0.3, 0.09, 0.08]),
    (8, 140.0, 50.0, [0.4, -0.36, -0.12], [0.15, 0.17, 0.27]),
    (9, 140.0, 50.0, [-0.4, -0.36, -0.04], [0.15, 0.17, 0.27]),
    (10, -850.0, 60.0, [0.55, 0.12, -0.4], [0.11, 0.13, 0.3]),
    (10, 25.0, 15.0, [-0.55, 0.1, -0.35], [0.11, 0.13, 0.32]),
    (10, 30.0, 15.0, [0.2, 0.42, -0.3], [0.22, 0.14, 0.12]),
    (10, -800.0, 80.0, [-0.18, 0.5, -0.42], [0.2, 0.1, 0.09]),
    (10, 20.0, 15.0, [0.0, 0.3, -0.55], [0.26, 0.14, 0.1]),
    (11, 8.0, 6.0, [0.0, 0.2, -0.88], [0.28, 0.27, 0.2]),
    (12, 420.0, 80.0, [0.55, -0.2, -0.85], [0.13, 0.36, 0.32]),
    (12, 420.0, 80.0, [-0.55, -0.2, -0.85], [0.13, 0.36, 0.32]),
    (12, 260.0, 60.0, [0.0, -0.5, 0.0], [0.16, 0.18, TUBE]),
    (12, 380.0, 60.0, [0.0, -0.76, 0.0], [0.05, 0.14, TUBE]),
    (13, 190.0, 60.0, [-0.08, -0.24, 0.0], [0.07, 0.085, TUBE]),
    (14, 120.0, 40.0, [0.12, -0.22, 0.0], [0.075, 0.08, TUBE]),
];

/// This patient's organs: each moved by up to 0.03 and up to 10 % larger or smaller; one contrast for all parts of an organ.
fn organs(rng: &mut Pcg64) -> Vec<Organ> {
    let contrast: [f64; ORGANS.len()] = std::array::from_fn(|_| spread(rng));
    let place = |(label, hu, varies, centre, radius): Plan| Organ {
        centre: centre.map(|c| c + 0.03 * spread(rng)),
        inverse: radius.map(|r| 1.0 / (r * vary(rng, 0.1))),
        hu: hu + varies * contrast[label as usize - 1],
        label,
    };
    ANATOMY.into_iter().map(place).collect()
}

/// HU and label at a place in body coordinates.
fn tissue(at: [f64; 3], organs: &[Organ]) -> (f64, u8) {
    let [x, y, z] = at;
    let radius = (x * x + y * y).sqrt();
    if radius > 1.0 {
        return (-1000.0, 0);
    }
    match organs.iter().rev().find(|organ| organ.holds(at)) {
        Some(organ) => (organ.hu, organ.label),
        None if radius > 0.98 => (20.0, 0),
        None if is_rib(radius, x, z) => (380.0, 12),
        None if (0.78..0.88).contains(&radius) => (55.0, 0),
        None => (-100.0, 0),
    }
}

/// Slanted hoops in the muscle of the upper half.
fn is_rib(radius: f64, x: f64, z: f64) -> bool {
    z > 0.1 && (0.8..0.86).contains(&radius) && (6.0 * z + 1.5 * x.abs()).rem_euclid(1.0) < 0.4
}

/// About normal with variance 1: four uniform 16-bit numbers.
fn noise(seed: u64, index: u64) -> f64 {
    let bits = engine::random::bits(seed, index);
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    (sum as f64 / 65535.0 - 2.0) * 3f64.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess;
    use crate::{Region, nifti};

    fn small(index: u64) -> Phantom {
        generate(4, index, [72, 72, 48], [4.5, 4.5, 3.0])
    }

    /// Mean place of a label in mm.
    fn centroid(p: &Phantom, organ: &str) -> [f64; 3] {
        let label = ORGANS.iter().position(|&o| o == organ).unwrap() as u8 + 1;
        let [_, ny, nz] = p.labels.dims;
        let inside: Vec<usize> = (0..p.labels.data.len()).filter(|&i| p.labels.data[i] == label).collect();
        assert!(!inside.is_empty(), "{organ}");
        let place = |&i: &usize| {
            affine::apply(&p.labels.affine, [(i / (ny * nz)) as f64, (i / nz % ny) as f64, (i % nz) as f64])
        };
        let sum = inside.iter().map(place).fold([0.0; 3], |a, b| [0, 1, 2].map(|i| a[i] + b[i]));
        sum.map(|s| s / inside.len() as f64)
    }

    #[test]
    fn patients_repeat_and_differ() {
        assert_eq!(small(1), small(1));
        assert_ne!(small(1).labels, small(2).labels);
    }

    #[test]
    fn organs_keep_their_order() {
        for index in 0..12 {
            let p = small(index);
            let at = |organ| centroid(&p, organ);
            assert!(at("liver")[0] > at("spleen")[0] && at("right kidney")[0] > at("left kidney")[0]);
            assert!(at("bone")[1] < at("aorta")[1] && at("aorta")[1] < at("stomach")[1]);
            assert!(at("bladder")[2] < at("right kidney")[2] && at("liver")[2] < at("right lung")[2]);
            assert!(at("left lung")[0] < at("right lung")[0] && at("vena cava")[0] > at("aorta")[0]);
        }
    }

    #[test]
    fn values_are_hounsfield_units() {
        let p = small(0);
        assert!(p.image.data.iter().all(|v| (-1024..1000).contains(v)));
        let air = p.image.data[0] as f64;
        assert!((air + 1000.0).abs() < 6.0 * NOISE);
        let liver: Vec<f64> =
            p.image.data.iter().zip(&p.labels.data).filter(|(_, l)| **l == 4).map(|(&v, _)| v as f64).collect();
        let mean = liver.iter().sum::<f64>() / liver.len() as f64;
        let sd = (liver.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / liver.len() as f64).sqrt();
        assert!((50.0..120.0).contains(&mean) && (sd - NOISE).abs() < 1.0);
    }

    #[test]
    fn the_chain_takes_phantoms_of_any_size() {
        for dims in [[1, 1, 1], [1, 31, 2], [40, 37, 3]] {
            let p = generate(1, 0, dims, [3.0; 3]);
            let out = preprocess::volume("phantom", p.hu(), &Region::Chest.settings()).unwrap();
            assert!(out.image.dims.iter().all(|&n| n >= 64));
            assert!(out.image.data.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }

    #[test]
    fn a_written_set_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_set(&folder.path().join("new"), 2, 7, &|_| ()).unwrap();
        assert!(paths[1].ends_with("phantom_001_ct.nii.gz"));
        let want = generate(7, 1, DIMS, SPACING);
        assert_eq!(nifti::read(&paths[1]).unwrap(), want.hu());
        let labels = nifti::read_label(&folder.path().join("new/phantom_001_labels.nii.gz")).unwrap();
        assert!(labels.data.iter().zip(&want.labels.data).all(|(&a, &b)| a == b as i32));
        assert_eq!(crate::dataset::find(&folder.path().join("new"), &[]).unwrap().labels, 2);
    }
}
