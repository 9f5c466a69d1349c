//! What a pre-trained model says about the crops of one sample.

use crate::{Error, Result};
use data::{Sample, Sampling};
use engine::{DType, Device, Tensor};
use models::state_dict::{self, LoadReport};
use models::voco::LOSS;
use models::weights::{self, Weights};
use models::{Batch, Loss, SwinUnetrConfig, Teacher, Voco, VocoConfig};
use std::path::Path;

/// What the weights in a `model.safetensors` say.
pub struct Prediction {
    /// `[S, K]`
    pub overlaps: Vec<f32>,
    /// What was loaded.
    pub loaded: String,
}

/// Predicts the overlaps of a sample.
pub fn predict(weights: &Path, sampling: &Sampling, sample: &Sample) -> Result<Prediction> {
    let (model, loaded) = read(weights)?;
    let Sampling { crops, roi, .. } = *sampling;
    let (bases, cube) = (sampling.bases(), [roi, roi, roi, 1]);
    let cubes = |values: &[f32], n: usize| Tensor::from_slice(values, &[&[n], &cube[..]].concat());
    let batch = Batch {
        crops: cubes(&sample.crops, crops)?,
        bases: cubes(&sample.bases, bases)?,
        labels: Tensor::from_slice(&sample.labels, &[1, crops, bases])?,
    };
    Ok(Prediction { overlaps: model.predict(&batch)?.to_vec::<f32>()?, loaded })
}

/// The pre-training model whose sizes are those of the weights, and a line about them.
fn read(path: &Path) -> Result<(Voco, String)> {
    let bytes = weights::read(path)?;
    let weights = Weights::parse(path, &bytes)?;
    let merging = weights.merging().map_err(|e| Error::file(path, e))?;
    let rows = |name: &str| rows(path, &weights, name);
    let network = SwinUnetrConfig {
        in_channels: 1,
        feature_size: rows("swinViT.patch_embed.proj.weight")?,
        out_channels: None,
        patch_merging: merging.order,
    };
    let loss = weights
        .metadata
        .get(LOSS)
        .map_or(Ok(Loss::Voco), |name| Loss::predicting(name))
        .map_err(|e| Error::file(path, e))?;
    let whole = weights.tensors.keys().any(|name| name.starts_with("teacher.backbone."));
    let config = VocoConfig {
        network,
        hidden: rows("student.layer1.0.weight")?,
        out: rows("student.layer3.0.weight")?,
        teacher: if whole { Teacher::Whole } else { Teacher::Projector },
        momentum: 1.0,
        row_dropout: 0.0,
        element_dropout: 0.0,
        weights: [1.0; 3],
        loss,
        // one crop after the other: the memory of a single one
        recompute: true,
    };
    let mut model = Voco::new(config, DType::F32, Device::Cpu, 0)?;
    let stores = [&mut model.params, &mut model.teacher_params];
    let report = state_dict::import_weights(stores, "", path, &weights)?;
    complete(path, &report)?;
    Ok((model, format!("{}: {merging}; {report}", path.display())))
}

/// As many as the file holds values for: an empty tensor may claim any number.
fn rows(path: &Path, weights: &Weights, name: &str) -> Result<usize> {
    let found = weights.tensors.get(name).filter(|t| !t.data.is_empty()).and_then(|t| t.shape.first().copied());
    found.ok_or_else(|| {
        Error::file(
            path,
            format!("has no {name}, or an empty one: give the model.safetensors of a folder that `vocoe train` wrote"),
        )
    })
}

/// A prediction with parameters left as they were drawn would mean nothing.
fn complete(path: &Path, report: &LoadReport) -> Result<()> {
    let mismatched =
        report.mismatched.first().map(|(name, ours, theirs)| format!("{name} is {theirs:?}, not {ours:?}"));
    let no_floats = report.no_floats.first().map(|(name, dtype)| format!("{name} is {dtype:?}, not floats"));
    let problem = mismatched.or(no_floats).or_else(|| report.missing.first().map(|name| format!("has no {name}")));
    problem.map_or(Ok(()), |problem| Err(Error::file(path, problem)))
}
