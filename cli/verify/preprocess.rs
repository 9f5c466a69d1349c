//! The deterministic chain on a real CT volume, which lies outside the case.

use super::case::Case;
use super::{Computed, Context};
use crate::{Error, Result};
use data::preprocess::{self, Settings};
use engine::Tensor;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Attrs {
    image: String,
    label: Option<String>,
    spacing: Option<[f64; 3]>,
    window: [f32; 2],
    #[serde(default)]
    foreground: f32,
    pad: [usize; 3],
}

pub fn run(case: &Case, context: &Context) -> Result<Computed> {
    let a: Attrs = case.attrs()?;
    let image = context.volume(&a.image)?;
    let label = a.label.map(|l| context.volume(&l)).transpose()?;
    let settings = Settings { spacing: a.spacing, window: a.window, foreground: a.foreground, pad: a.pad };
    let done = preprocess::run(&image, label.as_deref(), &settings)?;
    let dims = done.image.dims;
    let mut computed = Computed::from([
        ("out.image".into(), Tensor::from_slice(&done.image.data, &dims)?),
        ("out.affine".into(), Tensor::from_slice(done.image.affine.as_flattened(), &[4, 4])?),
    ]);
    if let Some(label) = done.label {
        computed.insert("out.label".into(), Tensor::from_slice(&label, &dims)?);
    }
    Ok(computed)
}

impl Context {
    fn volume(&self, name: &str) -> Result<PathBuf> {
        let path = self.ct.join(name);
        match path.is_file() {
            true => Ok(path),
            false => Err(Error::file(&path, "no such volume; give the folder with the CT volumes as --ct DIR")),
        }
    }
}
