//! What a pre-trained model says about the crops of one sample.

use crate::{Error, Result};
use data::{Sample, Sampling};
use engine::{DType, Device, Tensor};
use kernels::patch_merging::Order;
use models::state_dict::{self, LoadReport, StateDict};
use models::swin_unetr::merging_order;
use models::voco::LOSS;
use models::weights::{PATCH_MERGING, Weights};
use models::{Batch, Loss, SwinUnetrConfig, Teacher, Voco, VocoConfig};
use std::path::Path;

/// Predicted overlaps `[S, K]` of a sample, by the weights in a `model.safetensors`.
pub fn overlaps(weights: &Path, sampling: &Sampling, sample: &Sample) -> Result<Vec<f32>> {
    let model = read(weights)?;
    let Sampling { crops, roi, .. } = *sampling;
    let (bases, cube) = (sampling.bases(), [roi, roi, roi, 1]);
    let cubes = |values: &[f32], n: usize| Tensor::from_slice(values, &[&[n], &cube[..]].concat());
    let batch = Batch {
        crops: cubes(&sample.crops, crops)?,
        bases: cubes(&sample.bases, bases)?,
        labels: Tensor::from_slice(&sample.labels, &[1, crops, bases])?,
    };
    Ok(model.predict(&batch)?.to_vec::<f32>()?)
}

/// The pre-training model whose sizes are those of the weights.
fn read(path: &Path) -> Result<Voco> {
    let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
    let weights = Weights::parse(path, &bytes)?;
    let tensors = state_dict::tensors(&weights)?;
    let patch_merging = match weights.metadata.get(PATCH_MERGING) {
        Some(name) => merging_order(name)?,
        None => Order::Monai13,
    };
    let rows = |name: &str| rows(path, &tensors, name);
    let network = SwinUnetrConfig {
        in_channels: 1,
        feature_size: rows("swinViT.patch_embed.proj.weight")?,
        out_channels: None,
        patch_merging,
    };
    let loss = weights.metadata.get(LOSS).map_or(Ok(Loss::Voco), |name| Loss::predicting(name))?;
    let whole = tensors.keys().any(|name| name.starts_with("teacher.backbone."));
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
    for store in [&mut model.params, &mut model.teacher_params] {
        complete(path, state_dict::import(store, &tensors)?)?;
    }
    Ok(model)
}

fn rows(path: &Path, tensors: &StateDict, name: &str) -> Result<usize> {
    let found = tensors.get(name).and_then(|t| t.dims().first().copied());
    found.ok_or_else(|| {
        Error::file(path, format!("has no {name}: give the model.safetensors of a folder that `vocoe train` wrote"))
    })
}

/// A prediction with parameters left as they were drawn would mean nothing.
fn complete(path: &Path, report: LoadReport) -> Result<()> {
    let mismatched =
        report.mismatched.first().map(|(name, ours, theirs)| format!("{name} is {theirs:?}, not {ours:?}"));
    let problem = mismatched.or_else(|| report.missing.first().map(|name| format!("has no {name}")));
    problem.map_or(Ok(()), |problem| Err(Error::file(path, problem)))
}
