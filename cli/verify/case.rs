//! One reference case: a safetensors file with its kind, its attributes and its tensors in PyTorch's layouts.

use super::made::Made;
use crate::{Error, Result};
use engine::{DType, Element, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Clone)]
pub struct Case {
    pub path: PathBuf,
    pub kind: String,
    /// What it is computed in: F32, F64, BF16 or F16.
    pub dtype: DType,
    /// Those of the file, and those that `attrs.made` describes.
    pub tensors: BTreeMap<String, Tensor>,
    attrs: serde_json::Value,
    /// The errors of PyTorch's own bf16 run, by tensor; read where the case is computed in 16 bits.
    pub bf16_errors: BTreeMap<String, f64>,
}

/// Of all cases of a folder, in it or in its parent.
const BF16_ERRORS: &str = "bf16_errors.json";

/// A file's name without its ending.
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Attributes that any case may have.
#[derive(Deserialize)]
struct Common {
    #[serde(default)]
    made: BTreeMap<String, Made>,
}

impl Case {
    /// Errors when the file is no safetensors file, lacks `kind` or `attrs`, or holds a dtype that no case uses.
    pub fn read(path: &Path, dtype: DType) -> Result<Case> {
        let bad = |detail: String| Error::file(path, detail);
        let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let broken = |e| bad(format!("not a readable safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let entry = |key: &str| {
            let text = header.metadata().as_ref().and_then(|m| m.get(key)).cloned();
            text.ok_or_else(|| bad(format!("the header's __metadata__ has no \"{key}\"")))
        };
        let kind = entry("kind")?;
        let attrs = serde_json::from_str(&entry("attrs")?).map_err(|e| bad(format!("attrs: {e}")))?;
        let bf16_errors = if dtype.is_half() { bf16_errors(path)? } else { BTreeMap::new() };
        let mut case = Case { path: path.to_path_buf(), kind, dtype, tensors: BTreeMap::new(), attrs, bf16_errors };
        for (name, view) in SafeTensors::deserialize(&bytes).map_err(broken)?.tensors() {
            let tensor = tensor(&view).map_err(|e| bad(format!("{name}: {e}")))?;
            case.tensors.insert(name, tensor);
        }
        for (name, made) in case.attrs::<Common>()?.made {
            case.tensors.insert(name, made.tensor()?);
        }
        Ok(case)
    }

    /// The same case, computed in another dtype.
    pub fn computed_in(&self, dtype: DType) -> Case {
        Case { dtype, ..self.clone() }
    }

    /// The attributes that a kind needs.
    pub fn attrs<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.attrs).map_err(|e| Error::Message(format!("attrs: {e}")))
    }

    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::Message(format!("the case has no tensor {name}")))
    }

    /// A tensor in the dtype of the computation.
    pub fn float(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensor(name)?.to_dtype(self.dtype)?)
    }

    /// The tensors whose names start with `prefix`, under the rest of their names.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors.iter().filter_map(move |(name, t)| Some((name.strip_prefix(prefix)?, t)))
    }
}

/// What the nearest file of errors says about a case; nothing where there is none.
fn bf16_errors(case: &Path) -> Result<BTreeMap<String, f64>> {
    let files = case.ancestors().skip(1).take(2).map(|folder| folder.join(BF16_ERRORS));
    let Some(file) = files.into_iter().find(|file| file.is_file()) else { return Ok(BTreeMap::new()) };
    let bytes = std::fs::read(&file).map_err(|e| Error::file(&file, e))?;
    let mut all: BTreeMap<String, BTreeMap<String, f64>> =
        serde_json::from_slice(&bytes).map_err(|e| Error::file(&file, e))?;
    Ok(all.remove(&name(case)).unwrap_or_default())
}

fn tensor(view: &TensorView) -> Result<Tensor> {
    fn words<const N: usize, T: Element>(view: &TensorView, f: fn([u8; N]) -> T) -> Result<Tensor> {
        let values: Vec<T> = view.data().as_chunks::<N>().0.iter().map(|&word| f(word)).collect();
        Ok(Tensor::from_slice(&values, view.shape())?)
    }
    match view.dtype() {
        Dtype::F32 => words(view, f32::from_le_bytes),
        Dtype::F64 => words(view, f64::from_le_bytes),
        Dtype::I32 => words(view, i32::from_le_bytes),
        Dtype::U8 => words(view, u8::from_le_bytes),
        other => Err(Error::Message(format!("dtype {other:?}: cases hold F32, F64, I32 and U8"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_errors_are_those_of_the_folder_or_its_parent() {
        let folder = tempfile::tempdir().expect("folder");
        let case = folder.path().join("cases/gelu.safetensors");
        std::fs::create_dir(folder.path().join("cases")).expect("cases");
        assert!(bf16_errors(&case).expect("no file").is_empty());
        let file = folder.path().join(BF16_ERRORS);
        std::fs::write(&file, r#"{"gelu": {"out.y": 0.002}, "relu": {"out.y": 0.1}}"#).expect("errors");
        assert_eq!(bf16_errors(&case).expect("errors"), BTreeMap::from([("out.y".to_string(), 0.002)]));
        assert!(bf16_errors(&folder.path().join("cases/other.safetensors")).expect("errors").is_empty());
        std::fs::write(&file, "{").expect("errors");
        assert!(bf16_errors(&case).expect_err("broken").to_string().contains(BF16_ERRORS));
    }
}
