//! What a run leaves on disk: its weights, and all that it needs to go on bit for bit.
//!
//! Both are safetensors files with PyTorch's names and layouts: the projectors as `student.*` and `teacher.*`, a whole teacher's
//! network as `teacher.backbone.*`, the network as `backbone.*` in a checkpoint and without that prefix in the weights, as MONAI's SwinUNETR calls it. A checkpoint also holds the
//! optimiser's three slabs and, as metadata, the step, the resolved configuration and how the loss is scaled. There is no other
//! state: low-precision copies are rounded anew, samples follow
//! from (seed, epoch, index), dropped rows from (seed, step), the learning rate from the step.

use crate::optimizer::AdamW;
use crate::{Config, Error, LossScale, Result};
use engine::{Device, Tensor};
use memmap2::Mmap;
use models::state_dict::{self, StateDict};
use models::swin_unetr::merging_name;
use models::voco::LOSS;
use models::weights::{self, Merging, PATCH_MERGING, Weights};
use models::{Voco, state_dict::LoadReport};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ENDING: &str = "safetensors";
const STEP: &str = "step";
const BEST: &str = "best";
const SCALING: &str = "loss_scale";
const CONFIG: &str = "config";
/// As long as the network has features, however many channels its images have.
const EMBEDDING: &str = "backbone.swinViT.patch_embed.proj.bias";

/// The checkpoint with the lowest mean loss over the steps that led to it from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub loss: f64,
}

/// Writes all weights of the model after `step` steps.
pub fn save_weights(path: &Path, model: &Voco, step: u64) -> Result<()> {
    let bare = |(name, t): (String, Tensor)| (name.trim_start_matches("backbone.").to_string(), t);
    let tensors = weights(model)?.into_iter().map(bare).collect();
    Ok(state_dict::save(path, &tensors, description(model, step))?)
}

fn weights(model: &Voco) -> Result<StateDict> {
    let mut tensors = state_dict::export(&model.params)?;
    tensors.extend(state_dict::export(&model.teacher_params)?);
    Ok(tensors)
}

fn description(model: &Voco, step: u64) -> BTreeMap<String, String> {
    let network = model.config().network;
    BTreeMap::from([
        (STEP.to_string(), step.to_string()),
        ("feature_size".to_string(), network.feature_size.to_string()),
        (LOSS.to_string(), model.config().loss.prediction().to_string()),
        (PATCH_MERGING.to_string(), merging_name(network.patch_merging).to_string()),
    ])
}

/// The file of a step.
pub fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:07}.{ENDING}"))
}

/// Writes a checkpoint into `folder`.
pub fn save(folder: &Path, config: &Config, model: &Voco, optimizer: &AdamW, best: Best) -> Result<()> {
    let step = optimizer.steps();
    let mut tensors = weights(model)?;
    for (name, t) in AdamW::STATE.iter().zip(optimizer.state()) {
        tensors.insert(name.to_string(), t.to_device(Device::Cpu)?);
    }
    let mut metadata = description(model, step);
    metadata.insert(CONFIG.into(), config.to_toml()?);
    metadata.insert(BEST.into(), json(&best)?);
    if let Some(scaling) = optimizer.scaling() {
        metadata.insert(SCALING.into(), json(&scaling)?);
    }
    Ok(state_dict::save(&path(folder, step), &tensors, metadata)?)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Config(e.to_string()))
}

/// A checkpoint that was read and found whole.
#[derive(Debug)]
pub struct Saved {
    pub path: PathBuf,
    pub step: u64,
    pub best: Best,
    /// The configuration of the run, as TOML.
    pub config: String,
    scaling: Option<LossScale>,
    merging: Merging,
    file: Mmap,
}

impl Saved {
    /// Errors when the file is no checkpoint, or damaged.
    pub fn read(path: &Path) -> Result<Saved> {
        let file = weights::read(path)?;
        let weights = Weights::parse(path, &file)?;
        let metadata = &weights.metadata;
        let entry = |key: &str| {
            let lacks = || Error::Config(format!("{}: no checkpoint of a run (it has no \"{key}\")", path.display()));
            metadata.get(key).ok_or_else(lacks)
        };
        let unreadable = |key: &str| Error::Config(format!("{}: \"{key}\" is unreadable", path.display()));
        let step = entry(STEP)?.parse().map_err(|_| unreadable(STEP))?;
        let best = serde_json::from_str(entry(BEST)?).map_err(|_| unreadable(BEST))?;
        let scaling = metadata.get(SCALING).map(|text| serde_json::from_str(text)).transpose();
        let scaling = scaling.map_err(|_| unreadable(SCALING))?;
        let merging = weights.merging().map_err(|_| unreadable(PATCH_MERGING))?;
        let config = entry(CONFIG)?.clone();
        Ok(Saved { path: path.to_path_buf(), step, best, config, scaling, merging, file })
    }

    /// The newest whole checkpoint of a folder. `note` hears of newer ones that are damaged.
    pub fn newest(folder: &Path, note: &mut dyn FnMut(String)) -> Result<Saved> {
        let mut steps = steps(folder)?;
        while let Some(step) = steps.pop() {
            match Saved::read(&path(folder, step)) {
                Ok(saved) => return Ok(saved),
                Err(error) => note(format!("{error}; trying the checkpoint before it")),
            }
        }
        Err(Error::Config(format!("{}: no whole checkpoint to resume from; start the run anew", folder.display())))
    }

    /// The model and the optimiser as they were. `note` hears what was loaded.
    pub fn restore(self, config: &Config, note: &mut dyn FnMut(String)) -> Result<(Voco, AdamW)> {
        let mut model = Voco::new(config.voco(), config.precision.dtype(), config.device()?, config.seed)?;
        same_order(&self.path, self.merging, &model)?;
        let mut weights = Weights::parse(&self.path, &self.file)?;
        let mut state = Vec::new();
        for name in AdamW::STATE {
            let raw = weights.tensors.remove(name).ok_or_else(|| self.lacks(name))?;
            let unfit = |e| Error::Config(format!("{}: {name}: {e}", self.path.display()));
            state.push(state_dict::tensor(&raw).map_err(unfit)?.ok_or_else(|| self.lacks(name))?);
        }
        let state: [Tensor; 3] = state.try_into().map_err(|_| self.lacks(AdamW::STATE[0]))?;
        let stores = [&mut model.params, &mut model.teacher_params];
        let report = state_dict::import_weights(stores, "", &self.path, &weights)?;
        if let Some(name) = report.missing.first().or(report.mismatched.first().map(|(name, ..)| name)) {
            return Err(self.lacks(name));
        }
        note(loaded(&self.path, self.merging, &report));
        let optimizer = AdamW::resume(&model.params, config.adamw(), state, self.step, self.scaling)?;
        Ok((model, optimizer))
    }

    fn lacks(&self, name: &str) -> Error {
        let path = self.path.display();
        Error::Config(format!("{path}: {name} is missing or has another shape; was it written by another model?"))
    }
}

/// The steps that a folder has checkpoints of, in ascending order. A file of any other name than [`path()`] gives is no checkpoint.
fn steps(folder: &Path) -> Result<Vec<u64>> {
    let mut steps = Vec::new();
    let entries = std::fs::read_dir(folder).map_err(|e| {
        let folder = folder.display();
        Error::Config(format!("{folder}: {e}; give --out the folder of a run that wrote checkpoints"))
    })?;
    for entry in entries {
        let file = entry.map_err(Error::io(folder))?.path();
        let name = file.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
        let number = name.strip_prefix("step-").and_then(|n| n.parse::<u64>().ok());
        steps.extend(number.filter(|&step| path(folder, step) == file));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Whether a folder has a checkpoint, whole or not.
pub fn any(folder: &Path) -> bool {
    steps(folder).is_ok_and(|steps| !steps.is_empty())
}

/// Removes the checkpoints of later steps than `step`, from which a run goes on: it will make them again, and until then they would
/// be taken for newer ones.
pub fn forget_after(folder: &Path, step: u64) -> Result<()> {
    for later in steps(folder)?.into_iter().filter(|&s| s > step) {
        let path = path(folder, later);
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    Ok(())
}

/// Removes all checkpoints but the `keep` newest and the best.
pub fn prune(folder: &Path, keep: usize, best: Best) -> Result<()> {
    let steps = steps(folder)?;
    let old = &steps[..steps.len().saturating_sub(keep.max(1))];
    for &step in old.iter().filter(|&&step| step != best.step) {
        let path = path(folder, step);
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    Ok(())
}

/// Fills the backbone, and that of a whole teacher, from a file of weights; `note` hears what it took. Errors when nothing fits,
/// when the file's weights are for another size or another order of patch merging, with which they would be another network, and
/// when one of them is not finite.
pub fn load_backbone(path: &Path, model: &mut Voco, note: &mut dyn FnMut(String)) -> Result<()> {
    let bytes = weights::read(path)?;
    let weights = Weights::parse(path, &bytes)?;
    let merging = weights.merging().map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
    same_order(path, merging, model)?;
    let report = state_dict::import_weights([&mut model.params], "backbone.", path, &weights)?;
    report.check(path)?;
    same_size(path, &report)?;
    finite(path, &report)?;
    model.start_teacher()?;
    note(loaded(path, merging, &report));
    Ok(())
}

/// Some tensors, such as the tables of biases, have the same shape in networks of every size.
fn same_size(path: &Path, report: &LoadReport) -> Result<()> {
    match report.mismatched.iter().find(|(name, ..)| name == EMBEDDING) {
        Some((_, ours, theirs)) if let ([ours], [theirs]) = (&ours[..], &theirs[..]) => Err(Error::Config(format!(
            "{}: the file is of feature size {theirs}, this model of {ours}; give --feature-size {theirs} or other weights",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn finite(path: &Path, report: &LoadReport) -> Result<()> {
    let Some(name) = report.not_finite.first() else { return Ok(()) };
    let path = path.display();
    Err(Error::Config(format!(
        "{path}: {name} is not finite, and a run from there would not be either; give other weights"
    )))
}

fn same_order(path: &Path, theirs: Merging, model: &Voco) -> Result<()> {
    let ours = merging_name(model.config().network.patch_merging);
    if merging_name(theirs.order) == ours {
        return Ok(());
    }
    let path = path.display();
    Err(Error::Config(format!("{path}: its weights are for {theirs}; give some for {ours}, the order of this model")))
}

fn loaded(path: &Path, merging: Merging, report: &LoadReport) -> String {
    format!("{}: {merging}; {report}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::DType;
    use kernels::patch_merging::Order;
    use models::{Loss, SwinUnetrConfig, Teacher, VocoConfig};

    fn model(feature_size: usize) -> Voco {
        let network =
            SwinUnetrConfig { in_channels: 1, feature_size, out_channels: None, patch_merging: Order::Monai13 };
        let config = VocoConfig {
            network,
            hidden: 8,
            out: 8,
            teacher: Teacher::Projector,
            momentum: 0.9,
            row_dropout: 0.0,
            element_dropout: 0.0,
            weights: [1.0; 3],
            loss: Loss::Voco,
            recompute: false,
        };
        Voco::new(config, DType::F32, Device::Cpu, 1).expect("model")
    }

    /// The weights of a model of 12 features with one value of theirs changed.
    fn weights_with(path: &Path, name: &str, value: f32) {
        let mut tensors = weights(&model(12)).expect("weights");
        let mut values = tensors[name].to_vec::<f32>().expect("values");
        values[0] = value;
        let dims = tensors[name].dims().to_vec();
        tensors.insert(name.into(), Tensor::from_slice(&values, &dims).expect("tensor"));
        state_dict::save(path, &tensors, BTreeMap::new()).expect("saved");
    }

    #[test]
    fn weights_of_another_size_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("w.safetensors");
        save_weights(&path, &model(24), 0).expect("saved");
        let error = load_backbone(&path, &mut model(12), &mut |_| ()).expect_err("24 features").to_string();
        assert!(error.contains("w.safetensors: the file is of feature size 24, this model of 12;"), "{error}");
        assert!(error.contains("--feature-size 24") && error.lines().count() == 1, "{error}");
        load_backbone(&path, &mut model(24), &mut |_| ()).expect("the same size");
    }

    #[test]
    fn weights_that_are_not_finite_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("w.safetensors");
        let name = "backbone.swinViT.patch_embed.proj.weight";
        weights_with(&path, name, f32::NAN);
        let error = load_backbone(&path, &mut model(12), &mut |_| ()).expect_err("NaN").to_string();
        assert!(error.contains("w.safetensors: ") && error.contains(name) && error.lines().count() == 1, "{error}");
        weights_with(&path, name, 1.0);
        load_backbone(&path, &mut model(12), &mut |_| ()).expect("finite");
    }

    #[test]
    fn only_names_that_a_run_writes_are_checkpoints() {
        let folder = tempfile::tempdir().expect("folder");
        for name in
            ["step-9.safetensors", "step-+000003.safetensors", "step-0000002.safetensors", "step-10000000.safetensors"]
        {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        assert_eq!(steps(folder.path()).expect("steps"), [2, 10_000_000]);
        prune(folder.path(), 1, Best { step: 10_000_000, loss: 0.0 }).expect("nothing else is touched");
        assert!(folder.path().join("step-9.safetensors").exists());
    }
}
