//! Weights on disk: `backbone.*`, `student.*` and `teacher.*` under PyTorch's names.

use crate::{Error, Result};
use models::swin_unetr::merging_name;
use models::weights::{PATCH_MERGING, Weights};
use models::{Voco, state_dict};
use std::collections::HashMap;
use std::path::Path;

/// Writes all weights of the model after `step` steps.
pub fn save(path: &Path, model: &Voco, step: u64) -> Result<()> {
    let mut tensors = state_dict::export(&model.params)?;
    tensors.extend(state_dict::export(&model.teacher_params)?);
    let network = model.config().network;
    let metadata = HashMap::from([
        ("step".to_string(), step.to_string()),
        ("feature_size".to_string(), network.feature_size.to_string()),
        (PATCH_MERGING.to_string(), merging_name(network.patch_merging).to_string()),
    ]);
    Ok(state_dict::save(path, &tensors, metadata)?)
}

/// Fills the backbone from a file of weights, and says what it took. Errors when nothing fits, and when the file's weights are
/// for another order of patch merging, under which they would be another network.
pub fn load_backbone(path: &Path, model: &mut Voco) -> Result<state_dict::LoadReport> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let weights = Weights::parse(path, &bytes)?;
    let ours = merging_name(model.config().network.patch_merging);
    if let Some(theirs) = weights.metadata.get(PATCH_MERGING).filter(|theirs| *theirs != ours) {
        let path = path.display();
        return Err(Error::Config(format!("{path}: weights for patch_merging {theirs:?}; this model's is {ours:?}")));
    }
    let report = state_dict::import_section(&mut model.params, "backbone.", &state_dict::tensors(&weights)?)?;
    report.check(path)?;
    Ok(report)
}
