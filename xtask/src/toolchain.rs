//! The pinned CUDA compilers, installed from Python packages into a folder of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, process};

/// Pinned as a whole: the compiler's package alone would pull newer parts beside it.
const PACKAGE: &str = "cuda-toolkit[nvcc,nvrtc,cccl]==13.0.3.0";

/// The pinned `nvcc`, installed below `folder` when it is not there.
///
/// # Errors
/// When Python 3 with venv and pip is missing or the package cannot be fetched.
pub fn nvcc(folder: &Path) -> Result<PathBuf> {
    let mark = folder.join("installed");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == PACKAGE) {
        return find(folder);
    }
    eprintln!("installing {PACKAGE} into {} (about 500 MB)", folder.display());
    let needs = |e| format!("the CUDA compilers could not be installed; this needs Python 3 with venv and pip\n{e}");
    process::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder)).map_err(needs)?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE];
    process::output(Command::new(folder.join("bin/python3")).args(pip)).map_err(needs)?;
    let nvcc = find(folder)?;
    fs::write(&mark, PACKAGE).map_err(|e| format!("{}: {e}", mark.display()))?;
    Ok(nvcc)
}

fn find(folder: &Path) -> Result<PathBuf> {
    let pythons = fs::read_dir(folder.join("lib")).map_err(|e| format!("{}: {e}", folder.display()))?;
    let candidates = pythons.filter_map(|p| Some(p.ok()?.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    let missing = || format!("{} has no nvcc: remove the folder and try again", folder.display());
    candidates.into_iter().find(|p| p.exists()).ok_or_else(missing)
}
