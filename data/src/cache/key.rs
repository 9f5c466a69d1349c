//! What names an entry: the content of the volume's files, and everything that was done to it.

use super::Bits;
use super::store::Store;
use crate::dataset::Region;
use crate::error::{Error, Result};
use crate::nifti;
use crate::sample::Sampling;
use serde_json::json;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Raised when the chain's results change, or the form of an entry.
const VERSION: u32 = 7;

/// Name of the entry for content `content` under these settings: 32 hexadecimal digits.
pub(super) fn of(content: u128, region: Region, sampling: &Sampling, bits: Bits) -> String {
    let geometry = sampling.geometry;
    let resize = geometry.resize(region).then(|| sampling.extent());
    let settings = json!({
        "version": VERSION, "chain": geometry.settings(region), "resize": resize, "bits": bits,
    });
    hex(xxh3_128(format!("{} {settings}", hex(content)).as_bytes()))
}

/// Contents by what files are known by: their paths, sizes and times.
pub(super) type Contents = Mutex<HashMap<u128, u128>>;

/// Hash of the files of a volume, remembered in `memory` and in `store`, so that a file is read for it once; where nothing can be
/// written to the store, once by every process.
pub(super) fn content(path: &Path, store: &dyn Store, memory: &Contents) -> Result<u128> {
    let files = nifti::files(path);
    let identity = xxh3_128(&identity(&files)?);
    let memory = || memory.lock().unwrap_or_else(PoisonError::into_inner);
    let known = memory().get(&identity).copied();
    if let Some(content) = known {
        return Ok(content);
    }
    let stored = store.recall(&hex(identity)).and_then(|text| u128::from_str_radix(&text, 16).ok());
    let content = stored.map_or_else(|| read_content(&files), Ok)?;
    if stored.is_none() {
        store.remember(&hex(identity), &hex(content));
    }
    memory().insert(identity, content);
    Ok(content)
}

fn read_content(files: &[PathBuf]) -> Result<u128> {
    let mut hasher = Xxh3::new();
    files.iter().try_for_each(|file| hash(file, &mut hasher))?;
    Ok(hasher.digest128())
}

fn identity(files: &[PathBuf]) -> Result<Vec<u8>> {
    let mut text = String::new();
    for file in files {
        let (path, about) =
            std::path::absolute(file).and_then(|path| Ok((path, file.metadata()?))).map_err(|e| unreadable(file, e))?;
        let time = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        text += &format!("{} {} {} {}\n", path.display(), about.len(), time.as_nanos(), changed(&about));
    }
    Ok(text.into_bytes())
}

/// When a file's bytes, name or rights last changed, which unlike the time of its bytes cannot be set.
#[cfg(unix)]
fn changed(about: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}.{:09}", about.ctime(), about.ctime_nsec())
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> &'static str {
    ""
}

fn hash(path: &Path, hasher: &mut Xxh3) -> Result<()> {
    let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(|e| unreadable(path, e))? {
            0 => return Ok(()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::io(path, error, "check the path and its permissions")
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}
