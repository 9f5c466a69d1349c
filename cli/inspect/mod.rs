//! `vocoe inspect`: pictures of a volume with the base grid and random crops of one sample, and a check of the labels.

mod draw;
mod font;
mod geometry;
mod pictures;
mod predict;

use crate::{Error, Result, verbosity};
use data::{Geometry, Region, Sampling, Source, Volume};
use draw::Canvas;
use geometry::Layout;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Draw where crops lie in a volume, and check their position labels voxel by voxel.
///
/// The volume goes through its region's preprocessing and one sample is drawn, without augmentation. Written are the three
/// middle slices with the base grid and the crops, and one picture per crop with its labels; given weights, with the overlaps
/// that the model predicts beside them. Exit 1 when a label is not what the count says.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A CT volume (NIfTI)
    #[arg(value_name = "VOLUME")]
    volume: PathBuf,
    /// Folder for the pictures; it is created, and those of an earlier look are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Body region: decides spacing, window and resizing
    #[arg(long, default_value = "abdomen")]
    region: Region,
    /// Random crops
    #[arg(long, value_name = "N", default_value_t = Sampling::default().crops)]
    crops: usize,
    /// As of `vocoe train`: voco or cvpr
    #[arg(long, default_value = "voco")]
    geometry: Geometry,
    /// Base crops along x and along y [default: 3, with --geometry cvpr 4]
    #[arg(long, value_name = "N")]
    grid: Option<usize>,
    /// Side of a crop in voxels, as the network sees it
    #[arg(long, value_name = "N", default_value_t = Sampling::default().roi)]
    roi: usize,
    /// The same seed draws the same sample
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Weights of a pre-trained model, whose predictions are drawn too
    #[arg(long, value_name = "C.safetensors")]
    checkpoint: Option<PathBuf>,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vocoe inspect scan.nii.gz --out pictures
  vocoe inspect scan.nii.gz --region chest --out pictures --checkpoint runs/first/model.safetensors";

pub fn command(args: &Args) -> Result<bool> {
    let Args { crops, roi, grid, geometry, .. } = *args;
    let sampling = Sampling { crops, roi, grid: grid.unwrap_or(geometry.grid()), geometry };
    let source = Source::file(args.volume.clone(), args.region);
    let inspection = Inspection::new(&source, sampling, args.seed, args.checkpoint.as_deref())?;
    if let Some(prediction) = &inspection.prediction {
        verbosity::note(&prediction.loaded);
    }
    inspection.draw(&args.out)?;
    match args.json {
        true => verbosity::print(inspection.json())?,
        false => verbosity::say(inspection.table())?,
    }
    inspection.layout.verify()?;
    Ok(true)
}

/// Pictures of a run's first volume as its model sees it after training, in `pictures` below the run's folder.
pub fn draw_run(config: &training::Config, weights: &Path) -> Result<PathBuf> {
    /// A look needs no more of them, and a folder no more files.
    const CROPS: usize = 3;
    let sampling = Sampling { crops: config.crops.min(CROPS), ..config.sampling() };
    let source = training::source::first(config)?;
    let folder = config.out.join("pictures");
    let inspection = Inspection::new(&source, sampling, config.seed, Some(weights))?;
    inspection.draw(&folder)?;
    inspection.layout.verify()?;
    Ok(folder)
}

/// One sample of one volume.
struct Inspection {
    name: String,
    volume: std::sync::Arc<Volume>,
    layout: Layout,
    prediction: Option<predict::Prediction>,
}

impl Inspection {
    fn new(source: &Source, sampling: Sampling, seed: u64, weights: Option<&Path>) -> Result<Self> {
        geometry::check(&sampling)?;
        let volume = source.load(&sampling)?;
        let place = sampling.place(volume.dims, seed);
        let predict = |weights| predict::predict(weights, &sampling, &sampling.plain(&volume, &place));
        let prediction = weights.map(predict).transpose()?;
        Ok(Inspection { name: source.name(), layout: Layout::new(&sampling, &place), volume, prediction })
    }

    /// The model's overlaps of one crop.
    fn predicted(&self, crop: usize) -> Option<&[f32]> {
        let bases = self.layout.bases.len();
        self.prediction.as_ref().and_then(|p| p.overlaps.get(crop * bases..(crop + 1) * bases))
    }

    /// `axial.png`, `coronal.png`, `sagittal.png`, `crop-0.png`, …
    fn draw(&self, folder: &Path) -> Result<()> {
        let io = |e| Error::file(folder, format!("{e}; name a folder that can be written to"));
        std::fs::create_dir_all(folder).map_err(io)?;
        let plane_file = |plane: &pictures::Plane| folder.join(format!("{}.png", plane.name));
        let file = |number: usize| folder.join(format!("crop-{number}.png"));
        let count = self.layout.crops.len();
        let crops = (0..count).map(file).filter(|path| path.exists());
        let crops = crops.chain((count..).map(file).take_while(|path| path.exists()));
        let earlier: Vec<_> =
            pictures::PLANES.iter().map(plane_file).filter(|path| path.exists()).chain(crops).collect();
        if let Some(path) = earlier.iter().find(|path| !draw::is_ours(path)) {
            return Err(Error::file(path, "is no picture of an earlier look; name another folder"));
        }
        // those of an earlier look with more crops would pass for this one's
        earlier.iter().try_for_each(std::fs::remove_file).map_err(io)?;
        for plane in pictures::PLANES {
            let picture = pictures::slice(&self.volume, &self.layout, plane);
            save(&picture, &plane_file(&plane))?;
        }
        for (number, crop) in self.layout.crops.iter().enumerate() {
            let picture = pictures::crop(&self.volume, &self.layout, number, crop, self.predicted(number));
            save(&picture, &file(number))?;
        }
        Ok(())
    }

    /// A line for the place, then per crop its labels, the counted shares, and the predictions.
    fn table(&self) -> String {
        let (size, corner) = (self.layout.region.size(), self.layout.region.low);
        let mut lines = vec![
            format!("{}: {:?} voxels, sub-volume {size:?} at {corner:?}", self.name, self.volume.dims),
            format!("{:>4} {:>9}  {:9}{}", "crop", "centre", "base", row(0..self.layout.bases.len())),
        ];
        for (number, crop) in self.layout.crops.iter().enumerate() {
            let [x, y] = crop.centre;
            let share = |&n: &usize| format!("{:.3}", n as f64 / crop.voxels() as f64);
            let shown = |v: &f32| format!("{v:.3}");
            lines.push(format!(
                "{number:>4} {:>9}  {:9}{}",
                format!("{x},{y}"),
                "label",
                row(crop.label.iter().map(shown))
            ));
            lines.push(format!("{:16}{:9}{}", "", "counted", row(crop.counted.iter().map(share))));
            lines.extend(
                self.predicted(number).map(|all| format!("{:16}{:9}{}", "", "predicted", row(all.iter().map(shown)))),
            );
        }
        lines.join("\n")
    }

    fn json(&self) -> String {
        let crops = self.layout.crops.iter().enumerate().map(|(number, crop)| {
            json!({
                "crop": number,
                "centre": crop.centre,
                "label": crop.label,
                "counted": crop.counted,
                "predicted": self.predicted(number),
            })
        });
        let crops: Vec<_> = crops.collect();
        let (size, corner) = (self.layout.region.size(), self.layout.region.low);
        json!({"volume": self.name, "dims": self.volume.dims, "size": size, "corner": corner, "crops": crops})
            .to_string()
    }
}

fn save(picture: &Canvas, path: &Path) -> Result<()> {
    picture.save(path)?;
    verbosity::detail(path.display().to_string());
    Ok(())
}

/// Columns of equal width.
fn row(cells: impl Iterator<Item = impl ToString>) -> String {
    cells.map(|cell| format!(" {:>6}", cell.to_string())).collect()
}
