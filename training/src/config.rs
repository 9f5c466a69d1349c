//! One run's resolved settings, as they are printed and saved in `config.toml`.

use crate::optimizer::AdamWConfig;
use crate::{Error, Result};
use data::{Bits, Geometry, Region, Sampling};
use engine::{DType, Device};
use kernels::patch_merging::Order;
use models::{Loss, SwinUnetrConfig, Teacher, VocoConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Beyond these no machine has the memory, and sizes would overflow.
const MOST_CROPS: usize = 10_000;
const MOST_ROI: usize = 1024;
const MOST_FEATURES: usize = 12 << 10;
const MOST_PROJECTION: usize = 1 << 16;
const MOST_THREADS: usize = 1024;

/// Softmax temperature of the InfoNCE term.
const TEMPERATURE: f64 = 0.2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    Voco,
    Infonce,
    Cvpr1,
    Cvpr3,
}

/// What the teacher is a moving average of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherKind {
    Projector,
    Whole,
}

/// What networks are computed in, as far as [`autograd::precision`] lets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
    Fp16,
}

impl Precision {
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Fp16 => DType::F16,
        }
    }

    /// Errors when nothing can be computed in it on this device.
    pub fn check(self, device: Device) -> Result<()> {
        if self != Precision::Fp16 || device != Device::Cpu {
            return Ok(());
        }
        Err(Error::Config("the CPU does not compute in f16: give --precision bf16 or f32, or --device cuda".into()))
    }
}

/// A folder, list or `dataset.json`, and the body region that decides its preprocessing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    pub path: PathBuf,
    pub region: Region,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Trains on generated phantoms; `sources` is empty.
    pub demo: bool,
    pub exclude: Vec<String>,
    pub feature_size: usize,
    /// Width of the projectors' hidden layers and output.
    pub projection: usize,
    pub steps: u64,
    pub warmup: u64,
    pub volumes: usize,
    /// The volumes of a step are of one region.
    pub same_region: bool,
    pub crops: usize,
    pub geometry: Geometry,
    pub grid: usize,
    /// Side of a crop in voxels.
    pub roi: usize,
    pub loss: LossKind,
    /// The backbone's initial weights, where they are not drawn.
    pub weights: Option<PathBuf>,
    pub lr: f64,
    pub weight_decay: f64,
    pub teacher: TeacherKind,
    pub momentum: f64,
    pub row_dropout: f64,
    pub element_dropout: f64,
    pub intra_weight: f64,
    pub inter_weight: f64,
    pub reg_weight: f64,
    pub seed: u64,
    pub loader_threads: usize,
    /// Folder of processed volumes.
    pub cache: Option<PathBuf>,
    /// How finely they are stored there; none without a cache.
    pub cache_bits: Option<Bits>,
    /// Bytes that the cache may have.
    pub cache_size: Option<u64>,
    /// Share of the volumes that may be unusable before the run stops.
    pub bad_share: f64,
    /// A device by its name, `cpu` or `cuda:0`.
    pub device: String,
    pub precision: Precision,
    pub recompute: bool,
    /// Every step is launched kernel by kernel, on a GPU too.
    pub no_graph: bool,
    /// Steps between checkpoints; 0: only at the end.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints stay, besides the best.
    pub keep: usize,
    pub out: PathBuf,
    pub sources: Vec<SourceConfig>,
}

impl Config {
    pub fn voco(&self) -> VocoConfig {
        let network = SwinUnetrConfig {
            in_channels: 1,
            feature_size: self.feature_size,
            out_channels: None,
            patch_merging: Order::Monai13,
        };
        let loss = match self.loss {
            LossKind::Voco => Loss::Voco,
            LossKind::Infonce => Loss::InfoNce { temperature: TEMPERATURE },
            LossKind::Cvpr1 => Loss::Cvpr1,
            LossKind::Cvpr3 => Loss::Cvpr3,
        };
        let teacher = match self.teacher {
            TeacherKind::Projector => Teacher::Projector,
            TeacherKind::Whole => Teacher::Whole,
        };
        VocoConfig {
            network,
            hidden: self.projection,
            out: self.projection,
            teacher,
            momentum: self.momentum,
            row_dropout: self.row_dropout,
            element_dropout: self.element_dropout,
            weights: self.term_weights(),
            loss,
            recompute: self.recompute,
        }
    }

    pub fn sampling(&self) -> Sampling {
        Sampling { crops: self.crops, roi: self.roi, grid: self.grid, geometry: self.geometry }
    }

    fn term_weights(&self) -> [f64; 3] {
        [self.intra_weight, self.inter_weight, self.reg_weight]
    }

    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { weight_decay: self.weight_decay, ..AdamWConfig::default() }
    }

    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Config(e.to_string()))
    }

    pub fn device(&self) -> Result<Device> {
        self.device.parse().map_err(Error::Config)
    }

    /// Says what is wrong with settings that cannot work, before anything is read or written.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Config(what));
        if self.sources.is_empty() && !self.demo {
            return refuse("nothing to train on: give --data PATH, or --demo".into());
        }
        if self.demo && !self.sources.is_empty() {
            return refuse(
                "the demo trains on phantoms of its own: leave out --demo, or --data and [[sources]]".into(),
            );
        }
        self.check_recipe()
    }

    /// The same, of all but the data.
    pub fn check_recipe(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Config(what));
        let numbers = [
            ("seed", self.seed),
            ("steps", self.steps),
            ("warmup", self.warmup),
            ("checkpoint-every", self.checkpoint_every),
        ];
        let most = i64::MAX as u64; // a run's settings are kept in a file that holds no larger ones
        if let Some((name, number)) = numbers.into_iter().find(|(_, number)| *number > most) {
            return refuse(format!("{name} {number}: at most {most} (--{name})"));
        }
        if self.steps == 0 {
            return refuse("steps = 0: train for at least one step (--steps)".into());
        }
        if self.volumes == 0 || self.crops == 0 {
            return refuse(format!(
                "{} volumes x {} crops: both must be at least 1 (--volumes, --crops)",
                self.volumes, self.crops
            ));
        }
        if self.same_region && self.volumes < 2 {
            return refuse("same_region with 1 volume a step pairs nothing: take at least 2 (--volumes)".into());
        }
        if self.grid < 2 {
            return refuse(format!("grid {}: the base crops must be at least 2 x 2 (--grid)", self.grid));
        }
        let bases = self.grid.checked_mul(self.grid);
        let crops = bases.and_then(|k| k.checked_add(self.crops)).and_then(|n| n.checked_mul(self.volumes));
        if crops.is_none_or(|n| n > MOST_CROPS) || self.roi > MOST_ROI || self.feature_size > MOST_FEATURES {
            return refuse(format!(
                "{} volumes x ({} + {}²) crops of {}³ with feature size {}: at most {MOST_CROPS} crops a step, {MOST_ROI} and \
                 {MOST_FEATURES}",
                self.volumes, self.crops, self.grid, self.roi, self.feature_size
            ));
        }
        if self.geometry == Geometry::Cvpr && (self.grid, self.roi) != (4, 64) {
            let (grid, roi) = (self.grid, self.roi);
            return refuse(format!(
                "geometry cvpr has a grid of 4 and crops of 64 voxels, not {grid} and {roi}: leave both out"
            ));
        }
        if !self.roi.is_multiple_of(32) || self.roi < 64 {
            return refuse(format!(
                "roi {}: crops need a side divisible by 32 and of at least 64 voxels (--roi)",
                self.roi
            ));
        }
        if self.feature_size == 0 || !self.feature_size.is_multiple_of(12) {
            return refuse(format!(
                "feature size {}: use a multiple of 12 (--size, --feature-size)",
                self.feature_size
            ));
        }
        if !(1..=MOST_PROJECTION).contains(&self.projection) {
            return refuse(format!("projection {}: from 1 to {MOST_PROJECTION} (--projection)", self.projection));
        }
        if !((self.lr as f32).is_finite() && self.lr >= 0.0) {
            return refuse(format!("lr {}: must be finite and not negative (--lr)", self.lr));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return refuse(format!(
                "weight decay {}: must be finite and not negative (--weight-decay)",
                self.weight_decay
            ));
        }
        if let Some(p) = [self.row_dropout, self.element_dropout].iter().find(|p| !(0.0..1.0).contains(*p)) {
            return refuse(format!("dropout {p}: must lie in [0, 1) (--row-dropout, --element-dropout)"));
        }
        if !(0.0..=1.0).contains(&self.momentum) {
            return refuse(format!("momentum {}: must lie in [0, 1] (--momentum)", self.momentum));
        }
        if self.loss == LossKind::Cvpr1 && self.teacher == TeacherKind::Whole {
            return refuse("loss cvpr1 has no teacher: leave teacher = \"whole\" out, or take loss = \"cvpr3\"".into());
        }
        let weights = self.term_weights();
        if weights.iter().any(|w| !(w.is_finite() && *w >= 0.0)) || weights == [0.0; 3] {
            return refuse(format!(
                "term weights {weights:?}: must be finite and not negative, and one of them above 0 (--intra-weight, --inter-weight, --reg-weight)"
            ));
        }
        let without_inter = matches!(self.loss, LossKind::Cvpr1 | LossKind::Cvpr3);
        if without_inter && self.intra_weight == 0.0 && self.reg_weight == 0.0 {
            return refuse("the cvpr losses have no inter term: intra_weight or reg_weight must be above 0".into());
        }
        if self.keep == 0 {
            return refuse("keep 0: at least the newest checkpoint has to stay (--keep)".into());
        }
        if !(0.0..=1.0).contains(&self.bad_share) {
            return refuse(format!("bad_share {}: must lie in [0, 1] (--bad-share)", self.bad_share));
        }
        if !(1..=MOST_THREADS).contains(&self.loader_threads) {
            let n = self.loader_threads;
            return refuse(format!("loader_threads {n}: use 1 to {MOST_THREADS} (--loader-threads)"));
        }
        self.device().map(drop)
    }
}
