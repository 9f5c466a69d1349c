//! Weights on disk: `backbone.*`, `student.*` and `teacher.*` under PyTorch's names.

use crate::Result;
use models::swin_unetr::merging_name;
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
        ("patch_merging".to_string(), merging_name(network.patch_merging).to_string()),
    ]);
    Ok(state_dict::save(path, &tensors, metadata)?)
}
