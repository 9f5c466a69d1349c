//! The deterministic chain before any sampling: orient to RAS, resample, window, crop to the foreground, pad.
//!
//! Same results as the MONAI chain `Orientation → Spacing → ScaleIntensityRange(clip) → CropForeground → SpatialPad`.
//! Voxels that are NaN after resampling become background; infinite ones go to the end of the window they point to.

use crate::affine::{self, Affine, Axis};
use crate::error::{Error, Result};
use crate::nifti;
use crate::slices::{Planes, Slices};
use crate::spacing::{self, Grid};
use crate::volume::Volume;
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;

/// What the chain does to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Voxel size in mm along right, anterior, superior; `None` leaves the volume's own.
    pub spacing: Option<[f64; 3]>,
    /// HU that become 0 and 1.
    pub window: [f32; 2],
    /// Foreground is what is above this after windowing, in [0, 1).
    pub foreground: f32,
    /// Smallest size in voxels; smaller volumes are padded with 0 on both sides.
    pub pad: [usize; 3],
}

impl Settings {
    /// Errors when no volume could be processed: a voxel size that is not positive, a window without width.
    fn check(&self) -> Result<()> {
        let [low, high] = self.window;
        let sensible =
            self.spacing.iter().flatten().all(|&s| s > 0.0 && s.is_finite()) && low < high && (high - low).is_finite();
        let problem = || format!("spacing {:?} mm and window {:?} HU", self.spacing.unwrap_or_default(), self.window);
        if sensible { Ok(()) } else { Err(Error::setting(problem(), "give positive sizes, and the lower HU first")) }
    }
}

/// Result of the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Processed {
    /// Intensities in `[0, 1]`; the affine includes crop and pad.
    pub image: Volume,
    /// Label of every voxel of `image`, 0 in the padding.
    pub label: Option<Vec<i32>>,
}

/// Reads and processes one CT, and its label where there is one.
///
/// Errors: what [`nifti::read`] refuses; an affine that is no orientation; no foreground; a label
/// whose grid is another one than the image's.
pub fn run(image: &Path, label: Option<&Path>, settings: &Settings) -> Result<Processed> {
    settings.check()?;
    let mut slices = nifti::Image::open(image)?;
    let label = label.map(|path| nifti::read_label(path).map(|volume| Label { path, volume })).transpose()?;
    apply(image, &mut slices, label, settings)
}

/// [`run`] for a volume in memory, in HU; `name` stands in errors.
pub fn volume(name: &str, volume: Volume, settings: &Settings) -> Result<Processed> {
    settings.check()?;
    apply(Path::new(name), &mut Planes::of(&volume), None, settings)
}

struct Label<'a> {
    path: &'a Path,
    volume: Volume<i32>,
}

/// `path` stands in errors about the image.
fn apply(path: &Path, slices: &mut dyn Slices, label: Option<Label>, settings: &Settings) -> Result<Processed> {
    let (axes, grid) = placed(path, slices.dims(), &slices.affine(), settings)?;
    let mut image = spacing::linear(slices, axes, grid.as_ref())?;
    let label = label.map(|label| aligned(label, image.dims, settings)).transpose()?;
    let (first, end) = window(&mut image, settings).ok_or_else(|| {
        let [low, high] = settings.window;
        let problem = format!("has no voxel above {} HU", low + settings.foreground * (high - low));
        Error::file(path, problem, "check that it is a CT in HU, or leave it out")
    })?;
    let boxed = Bounded { first, end, pad: settings.pad };
    let padded = boxed.padded();
    if padded.iter().map(|&n| n as f64).product::<f64>() > spacing::MAX_VOXELS {
        return Err(Error::file(path, format!("would take {padded:?} voxels with its padding"), "leave it out"));
    }
    Ok(Processed { image: boxed.of(image), label: label.map(|label| boxed.of(label).data) })
}

/// The axes of a volume that run right, anterior and superior, and the grid over them that it is resampled on.
fn placed(path: &Path, dims: [usize; 3], affine: &Affine, settings: &Settings) -> Result<([Axis; 3], Option<Grid>)> {
    let refuse = |problem| Error::file(path, problem, "set the sform or qform in the header");
    let axes = affine::orientation(affine).ok_or_else(|| refuse("its affine is no orientation"))?;
    let Some(spacing) = settings.spacing else { return Ok((axes, None)) };
    let turned = affine::reoriented(affine, dims, axes);
    let grid = spacing::grid(axes.map(|axis| dims[axis.from]), &turned, spacing);
    Ok((axes, Some(grid.ok_or_else(|| refuse("its voxel sizes make no sensible grid"))?)))
}

/// The label of an image of `dims`, resampled as that was.
fn aligned(Label { path, volume }: Label, dims: [usize; 3], settings: &Settings) -> Result<Volume<i32>> {
    let (axes, grid) = placed(path, volume.dims, &volume.affine, settings)?;
    let volume = volume.reoriented(axes);
    let label = match grid {
        Some(grid) => spacing::nearest(volume, &grid),
        None => volume,
    };
    if label.dims != dims {
        let problem = format!("covers {:?} voxels where the image has {dims:?}", label.dims);
        return Err(Error::file(path, problem, "resample the label onto the image's grid"));
    }
    Ok(label)
}

/// A box of voxels, the first and one past the last, and the size up to which 0 is put around it.
struct Bounded {
    first: [usize; 3],
    end: [usize; 3],
    pad: [usize; 3],
}

impl Bounded {
    fn size(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.end[i] - self.first[i])
    }

    fn padded(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.size()[i].max(self.pad[i]))
    }

    fn of<T: Copy + Default + Send + Sync>(&self, volume: Volume<T>) -> Volume<T> {
        let (size, padded) = (self.size(), self.padded());
        let inner = volume.cropped(self.first, size);
        if padded == size {
            return inner;
        }
        inner.extract([0, 1, 2].map(|i| -(((padded[i] - size[i]) / 2) as isize)), padded)
    }
}

/// Scales HU to `[0, 1]` and returns the first and one-past-last foreground voxel per axis; `None` without foreground.
fn window(image: &mut Volume, settings: &Settings) -> Option<Bounds> {
    let [_, ny, nz] = image.dims;
    let ([low, high], foreground) = (settings.window, settings.foreground);
    let width = high - low;
    let planes = image.data.par_chunks_mut(ny * nz).enumerate().filter_map(|(x, plane)| {
        plane.iter_mut().for_each(|v| *v = unit((*v - low) / width));
        let rows = plane.chunks(nz).enumerate().filter_map(|(y, row)| {
            let first = row.iter().position(|&v| v > foreground)?;
            let last = row.iter().rposition(|&v| v > foreground)?;
            Some(([x, y, first], [x + 1, y + 1, last + 1]))
        });
        rows.reduce(union)
    });
    planes.reduce_with(union)
}

/// Clips to `[0, 1]`; NaN becomes 0.
fn unit(v: f32) -> f32 {
    if v > 0.0 { v.min(1.0) } else { 0.0 }
}

type Bounds = ([usize; 3], [usize; 3]);

fn union(a: Bounds, b: Bounds) -> Bounds {
    ([0, 1, 2].map(|i| a.0[i].min(b.0[i])), [0, 1, 2].map(|i| a.1[i].max(b.1[i])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::IDENTITY;

    const PLAIN: Settings = Settings { spacing: Some([1.0; 3]), window: [0.0, 10.0], foreground: 0.0, pad: [1; 3] };

    fn column(data: &[f32]) -> Volume {
        Volume { data: data.to_vec(), dims: [1, 1, data.len()], affine: IDENTITY }
    }

    fn labelled(image: &[f32], volume: Volume<i32>, settings: &Settings) -> Result<Processed> {
        let label = Label { path: Path::new("label"), volume };
        apply(Path::new("image"), &mut Planes::of(&column(image)), Some(label), settings)
    }

    #[test]
    fn windows_crops_and_pads() {
        let out = volume("v", column(&[-5.0, 0.0, 5.0, 0.0, 20.0, 0.0]), &PLAIN).unwrap().image;
        assert_eq!((out.data, out.dims), (vec![0.5, 0.0, 1.0], [1, 1, 3]));
        assert_eq!(out.affine[2][3], 2.0);
        for (pad, want) in [(6, vec![0.0, 0.5, 0.0, 1.0, 0.0, 0.0]), (4, vec![0.5, 0.0, 1.0, 0.0])] {
            let settings = Settings { pad: [1, 1, pad], ..PLAIN };
            assert_eq!(volume("v", column(&[0.0, 5.0, 0.0, 20.0, 0.0]), &settings).unwrap().image.data, want);
        }
    }

    #[test]
    fn a_higher_foreground_leaves_out_the_dim_border_when_padding_too() {
        let data = [1.0, 4.0, 2.0, 5.0, 3.0, 1.0];
        for (pad, want) in [(1, vec![0.4, 0.2, 0.5]), (6, vec![0.0, 0.4, 0.2, 0.5, 0.0, 0.0])] {
            let settings = Settings { foreground: 0.3, pad: [1, 1, pad], ..PLAIN };
            assert_eq!(volume("v", column(&data), &settings).unwrap().image.data, want);
        }
        let settings = Settings { foreground: 0.5, ..PLAIN };
        let error = volume("v", column(&data), &settings).unwrap_err().to_string();
        assert!(error.contains("no voxel above 5 HU"), "{error}");
    }

    #[test]
    fn without_a_spacing_voxels_stay() {
        let wide = Volume {
            affine: [[3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]],
            ..column(&[5.0, 2.5])
        };
        let out = volume("v", wide, &Settings { spacing: None, ..PLAIN }).unwrap().image;
        assert_eq!((out.data, out.affine[2][2]), (vec![0.5, 0.25], 0.5));
    }

    #[test]
    fn labels_outside_the_foreground_are_cut_off_before_padding() {
        let label = Volume { data: vec![7, 8, 9], dims: [1, 1, 3], affine: IDENTITY };
        let settings = Settings { pad: [1, 1, 3], ..PLAIN };
        assert_eq!(labelled(&[0.0, 5.0, 0.0], label, &settings).unwrap().label, Some(vec![0, 8, 0]));
    }

    #[test]
    fn missing_values_are_background_and_infinite_ones_the_end_of_the_window() {
        let data = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 5.0, f32::NAN];
        assert_eq!(volume("v", column(&data), &PLAIN).unwrap().image.data, [1.0, 0.0, 0.5]);
    }

    #[test]
    fn what_cannot_be_processed_is_an_error_with_a_name() {
        let text = |v: Volume, s: &Settings| volume("patient", v, s).unwrap_err().to_string();
        assert!(text(column(&[0.0, -4.0, f32::NAN]), &PLAIN).starts_with("patient: has no voxel above 0 HU"));
        let flat = Volume { affine: [[0.0; 4]; 4], ..column(&[5.0]) };
        assert!(text(flat, &PLAIN).contains("no orientation"));
        for bad in [Settings { spacing: Some([0.0, 1.0, 1.0]), ..PLAIN }, Settings { window: [5.0, 5.0], ..PLAIN }] {
            assert!(text(column(&[5.0]), &bad).contains("spacing"));
        }
        let wide = Settings { pad: [1 << 16, 1 << 16, 1], ..PLAIN };
        assert!(text(column(&[5.0]), &wide).contains("with its padding"));
        let small = Volume { data: vec![1], dims: [1, 1, 1], affine: IDENTITY };
        let error = labelled(&[5.0, 5.0], small, &PLAIN).unwrap_err().to_string();
        assert!(error.starts_with("label: covers"), "{error}");
    }
}
