//! The two ways in which the method was published: how a volume is prepared, and how large the crops are that are cut from it.

use crate::dataset::Region;
use crate::preprocess::Settings;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Geometry {
    /// Volumes are resampled to their region's spacing, and crops cut at the size that the network sees. The published grid is
    /// 3 x 3 on 192 x 192 x 64 voxels.
    #[default]
    Voco,
    /// The first publication's, for its corpus of 10,000 volumes: no resampling, one window for all regions, the box of what is
    /// brighter than 0.3 resized to the sub-volume, and crops cut half as large again as the network sees them, then resized.
    /// The published grid is 4 x 4 on 384 x 384 x 96 voxels, with crops of 96 voxels that become 64.
    ///
    /// Voxels are not rounded to whole HU as there. Its other variant, for 1,000 volumes, begins with a resize whose size is not
    /// on record, and is left out.
    Cvpr,
}

impl Geometry {
    /// Bases per axis, as published.
    pub fn grid(self) -> usize {
        match self {
            Geometry::Voco => 3,
            Geometry::Cvpr => 4,
        }
    }

    /// Side in the volume, in voxels, of a crop that the network sees with side `roi`.
    pub fn side(self, roi: usize) -> usize {
        match self {
            Geometry::Voco => roi,
            Geometry::Cvpr => roi.saturating_add(roi / 2),
        }
    }

    /// Probability that a crop's grey values are shifted.
    pub fn shift_probability(self) -> f64 {
        match self {
            Geometry::Voco => 0.5,
            Geometry::Cvpr => 0.1,
        }
    }

    /// What the deterministic chain does to a volume of `region`.
    pub fn settings(self, region: Region) -> Settings {
        match self {
            Geometry::Voco => region.settings(),
            Geometry::Cvpr => Settings { spacing: None, window: [-175.0, 250.0], foreground: 0.3, pad: [1; 3] },
        }
    }

    /// Whether the whole volume is resized to the sub-volume, instead of cropped.
    pub fn resize(self, region: Region) -> bool {
        self == Geometry::Cvpr || region.resize()
    }
}

impl FromStr for Geometry {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "voco" => Ok(Geometry::Voco),
            "cvpr" => Ok(Geometry::Cvpr),
            _ => Err("use voco or cvpr".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Source;
    use crate::sample::Sampling;
    use crate::transform::resize;
    use crate::volume::Volume;
    use crate::{nifti, preprocess};

    const CVPR: Sampling = Sampling { crops: 2, roi: 64, grid: 4, geometry: Geometry::Cvpr };
    const TINY: Sampling = Sampling { roi: 8, ..CVPR };

    /// 6 x 5 x 4 voxels whose first column and last row are dim, mirrored in x and y.
    fn scan() -> Volume<i16> {
        let hu = |x: usize, y: usize, z: usize| match (x, y) {
            (0, _) | (_, 4) => -160,
            _ => ((x * 37 + y * 101 + z * 53) % 400) as i16 - 100,
        };
        let voxels = (0..120).map(|i| hu(i / 20, i / 4 % 5, i % 4));
        let affine = [[-2.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
        Volume { data: voxels.collect(), dims: [6, 5, 4], affine }
    }

    /// MONAI 1.3.0: Orientation(RAS), ScaleIntensityRange(-175, 250, 0, 1, clip), CropForeground(x > 0.3), Resize((3, 3, 2),
    /// trilinear, align_corners).
    #[test]
    fn volumes_are_prepared_as_monai_does() {
        let scan = scan();
        let scan =
            Volume { data: scan.data.iter().map(|&v| f32::from(v)).collect(), dims: scan.dims, affine: scan.affine };
        for region in [Region::Abdomen, Region::Chest, Region::HeadNeck] {
            let image = preprocess::volume("scan", scan.clone(), &Geometry::Cvpr.settings(region)).unwrap().image;
            assert_eq!(image.dims, [5, 4, 4]);
            let want = [
                0.383529, 0.757647, 0.924706, 0.401176, 0.611765, 0.985882, 0.209412, 0.583529, 0.794118, 0.672941,
                0.437647, 0.811765, 0.976471, 0.409412, 0.62, 0.937647, 0.263529, 0.637647,
            ];
            let got = resize(&image, [3, 3, 2]).data;
            assert!(got.iter().zip(want).all(|(g, w): (&f32, f32)| (g - w).abs() < 2e-6), "{got:?}");
        }
    }

    #[test]
    fn a_volume_of_any_region_becomes_the_sub_volume() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scan.nii.gz");
        nifti::write_image(&path, &scan()).unwrap();
        for region in [Region::Abdomen, Region::Chest] {
            let volume = Source::file(path.clone(), region).load(&TINY).unwrap();
            assert_eq!((volume.dims, TINY.extent()), ([48, 48, 12], [48, 48, 12]));
        }
        assert_eq!(CVPR.extent(), [384, 384, 96]);
    }

    #[test]
    fn labels_are_shares_of_96_voxels_a_side() {
        let label = |x, y| CVPR.label([x, y]).iter().map(|&y| y * 9216.0).collect::<Vec<_>>();
        let expect = |parts: &[(usize, f32)]| {
            let mut want = vec![0.0; 16];
            parts.iter().for_each(|&(base, voxels)| want[base] = voxels);
            want
        };
        assert_eq!(label(48, 48), expect(&[(0, 9216.0)]));
        assert_eq!(label(100, 70), expect(&[(0, 3256.0), (1, 968.0), (4, 3848.0), (5, 1144.0)]));
        assert_eq!(label(335, 144), expect(&[(9, 96.0), (13, 9120.0)]));
    }

    #[test]
    fn every_label_is_its_voxel_overlap() {
        for (sampling, step) in [(TINY, 1), (CVPR, 7)] {
            let (side, end) = (sampling.side(), sampling.extent()[0]);
            let centres = || (side / 2..end - side / 2).step_by(step);
            for (x, y) in centres().flat_map(|x| centres().map(move |y| (x, y))) {
                let mut count = [0usize; 16];
                for i in x - side / 2..x + side / 2 {
                    (y - side / 2..y + side / 2).for_each(|j| count[i / side * 4 + j / side] += 1);
                }
                let want: Vec<f32> = count.iter().map(|&n| (n as f64 / (side * side) as f64) as f32).collect();
                assert_eq!(sampling.label([x, y]), want, "{x}, {y}");
            }
        }
    }

    #[test]
    fn centres_lie_from_48_to_335() {
        let all: Vec<usize> = (0..1500).flat_map(|seed| CVPR.place([384, 384, 96], seed).centres).flatten().collect();
        assert_eq!((all.iter().min(), all.iter().max()), (Some(&48), Some(&335)));
    }

    /// Of a volume that is linear along every axis, so that interpolation is exact.
    #[test]
    fn crops_and_bases_are_their_boxes_resized_corner_to_corner() {
        let value = |x: f32, y: f32, z: f32| x + 100.0 * y + 10_000.0 * z;
        let dims = TINY.extent();
        let voxels = (0..dims.iter().product::<usize>()).map(|i| {
            let [x, y, z] = [i / (dims[1] * dims[2]), i / dims[2] % dims[1], i % dims[2]].map(|v| v as f32);
            value(x, y, z)
        });
        let volume = Volume { data: voxels.collect(), dims, affine: crate::affine::IDENTITY };
        let sample = TINY.plain(&volume, &TINY.place(dims, 3));
        let is_box = |cube: &[f32], [x, y]: [usize; 2]| {
            cube.iter().enumerate().all(|(i, v)| {
                let [a, b, c] = [i / 64, i / 8 % 8, i % 8].map(|o| o as f32 * 11.0 / 7.0);
                (v - value(x as f32 + a, y as f32 + b, c)).abs() < 0.1
            })
        };
        assert_eq!([sample.crops.len(), sample.bases.len()], [2 * 512, 16 * 512]);
        for (cube, centre) in sample.crops.chunks(512).zip(&sample.centres) {
            assert!(is_box(cube, centre.map(|c| c - 6)));
        }
        for (b, cube) in sample.bases.chunks(512).enumerate() {
            assert!(is_box(cube, [b / 4 * 12, b % 4 * 12]));
        }
    }
}
