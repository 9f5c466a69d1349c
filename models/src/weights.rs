//! A weights file as it is, `.safetensors` or PyTorch's `.pt`: tensors of every dtype by name, and what was said about them.

use crate::error::Unwritten;
use crate::swin_unetr::{merging_name, merging_order};
use crate::{Error, Result, torch_file};
use kernels::patch_merging::Order;
use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Error as IoError, ErrorKind, Write};
use std::path::Path;

/// Under this name the metadata record the order of patch merging.
pub const PATCH_MERGING: &str = "patch_merging";

/// The order of the published models, and of MONAI's networks up to 1.4: that of files which record none.
const USUAL_MERGING: Order = Order::Monai13;

/// Under this name the metadata of a safetensors file of ours record the checksum of all the rest.
const CHECKSUM: &str = "checksum";

/// Under this name the header of a safetensors file holds its metadata.
const METADATA: &str = "__metadata__";

/// What a file's name ends in while it is being written.
pub const PARTIAL: &str = ".partial";

/// A tensor in PyTorch's layout: row-major, little-endian. Borrows from the file where its bytes lie so there.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Cow<'a, [u8]>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights<'a> {
    pub tensors: BTreeMap<String, RawTensor<'a>>,
    pub metadata: BTreeMap<String, String>,
    /// The entry of the checkpoint that held the tensors, where they were not its outermost dict.
    pub wrapper: Option<&'static str>,
    /// Entries that were left out because they are no tensors, or lay beside the wrapper.
    pub ignored: BTreeSet<String>,
}

/// The order of patch merging under which a file's weights mean what they do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merging {
    pub order: Order,
    /// Whether the file records it. PyTorch's files do not; theirs is taken to be that of the published models.
    pub stated: bool,
}

impl fmt::Display for Merging {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{PATCH_MERGING} {}", merging_name(self.order))?;
        f.write_str(if self.stated { "" } else { " (the file does not say)" })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Torch,
    SafeTensors,
}

impl Format {
    /// By the name's ending. Errors with the endings that there are.
    pub fn of(path: &Path) -> Result<Format> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("pt" | "pth") => Ok(Format::Torch),
            Some("safetensors") => Ok(Format::SafeTensors),
            _ => Err(Error::file(path, "unknown kind of weights; the name must end in .pt, .pth or .safetensors")),
        }
    }
}

/// The bytes of a file of weights, for [`Weights::parse`]. They are mapped: a checkpoint is as large as the run that goes on from it,
/// and beside a copy of it the run might not fit.
pub fn read(path: &Path) -> Result<Mmap> {
    map(path).map_err(|e| Error::file(path, format!("{e}; check the path and its permissions")))
}

fn map(path: &Path) -> Result<Mmap, IoError> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(IoError::new(ErrorKind::InvalidInput, "not a file"));
    }
    // SAFETY: bytes that change under a map are undefined behaviour, and those that vanish end the process. Files of ours never
    // change under their name: another takes it (`save`). That nobody cuts or rewrites a file of theirs in place is asked of them.
    unsafe { Mmap::map(&file) }
}

/// The name without what wrappers of modules put before it, and with MONAI's `swinViT` for the `swin_vit` of other files.
pub fn bare_name(name: &str) -> String {
    name.trim_start_matches("module.").trim_start_matches("backbone.").replace("swin_vit", "swinViT")
}

impl<'a> Weights<'a> {
    /// Reads the bytes of the file at `path`. Errors when there is no tensor in it, and when it carries a checksum that is not
    /// that of its contents.
    pub fn parse(path: &Path, bytes: &'a [u8]) -> Result<Weights<'a>> {
        let parsed = match Format::of(path)? {
            Format::Torch => torch_file::read(bytes),
            Format::SafeTensors => from_safetensors(bytes).map_err(|e| format!("not a safetensors file: {e}")),
        };
        let mut weights = parsed.map_err(|detail| Error::file(path, detail))?;
        if let Some(stated) = weights.metadata.remove(CHECKSUM)
            && stated != weights.checksum()
        {
            return Err(Error::file(
                path,
                "its checksum is not that of its contents: damaged, or changed since it was written; use another copy, or drop \
                 the metadata's \"checksum\" if the change was meant",
            ));
        }
        if weights.tensors.is_empty() {
            return Err(Error::file(path, "holds no tensors; give a file of a model's state_dict"));
        }
        if let Some((name, t)) = weights.tensors.iter().find(|(_, t)| !countable(&t.shape)) {
            return Err(Error::file(path, format!("tensor {name:?} of shape {:?} is too large", t.shape)));
        }
        Ok(weights)
    }

    /// Errors when the file records an order that there is not.
    pub fn merging(&self) -> Result<Merging> {
        match self.metadata.get(PATCH_MERGING) {
            Some(name) => Ok(Merging { order: merging_order(name)?, stated: true }),
            None => Ok(Merging { order: USUAL_MERGING, stated: false }),
        }
    }

    /// Gives every tensor its bare name, and says how many that changed. Errors when two would share one.
    pub fn rename(&mut self) -> Result<usize, String> {
        let (mut renamed, mut changed) = (BTreeMap::new(), 0);
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let bare = bare_name(&name);
            changed += usize::from(bare != name);
            if renamed.insert(bare.clone(), tensor).is_some() {
                return Err(format!(
                    "two tensors are called {bare:?} once module. and backbone. are removed and swin_vit is swinViT"
                ));
            }
        }
        self.tensors = renamed;
        Ok(changed)
    }

    /// Bytes of all tensors together.
    pub fn size(&self) -> usize {
        self.tensors.values().map(|t| t.data.len()).sum()
    }

    /// Writes a temporary file, syncs it to the disk and gives it the name, so that the name never holds half a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let format = Format::of(path)?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(PARTIAL);
        let partial = Path::new(&partial);
        let written = self.write(format, partial).and_then(|()| Ok(named(partial, path)?));
        written.map_err(|error| {
            // Nothing else can be done about a temporary file that cannot be removed.
            let _ = std::fs::remove_file(partial);
            match error {
                Unwritten::Unfit(detail) => Error::file(path, detail),
                Unwritten::Io(source) => Error::Io { path: path.to_path_buf(), source },
            }
        })
    }

    /// CRC-32 of the metadata, and of the tensors' names, shapes and bytes.
    fn checksum(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        for (key, value) in &self.metadata {
            hasher.update(format!("{key}={value};").as_bytes());
        }
        for (name, RawTensor { dtype, shape, data }) in &self.tensors {
            hasher.update(format!("{name}{dtype:?}{shape:?};").as_bytes());
            hasher.update(data);
        }
        format!("{:08x}", hasher.finalize())
    }

    fn write(&self, format: Format, path: &Path) -> Result<(), Unwritten> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        match format {
            Format::Torch => torch_file::write(self, file),
            Format::SafeTensors => self.write_safetensors(file),
        }
    }

    /// Length and text of the header, then the tensors, those of the widest dtype first. The crate's own writer goes through a
    /// file of a name of its own, which stays behind when the process is killed. Errors when a tensor has the metadata's name.
    fn write_safetensors(&self, mut out: impl Write) -> Result<(), Unwritten> {
        if self.tensors.contains_key(METADATA) {
            let detail = format!("no tensor of a .safetensors can be called {METADATA:?}; rename it, or write a .pt");
            return Err(Unwritten::Unfit(detail));
        }
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(name, tensor)| (Reverse(tensor.dtype), *name));
        let mut end = 0;
        // Sorted, so that equal contents are equal files.
        let mut entries = BTreeMap::new();
        for (name, RawTensor { dtype, shape, data }) in &tensors {
            let data_offsets = (end, end + data.len());
            end += data.len();
            let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets };
            entries.insert(name.as_str(), serde_json::to_value(info).map_err(IoError::from)?);
        }
        let mut metadata = self.metadata.clone();
        metadata.insert(CHECKSUM.to_string(), self.checksum());
        entries.insert(METADATA, serde_json::to_value(metadata).map_err(IoError::from)?);
        let mut header = serde_json::to_vec(&entries).map_err(IoError::from)?;
        header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.iter().try_for_each(|(_, tensor)| out.write_all(&tensor.data))?;
        Ok(out.flush()?)
    }
}

/// Whether places in a tensor of this shape can be counted in 64 bits, as every reader has to; even in one that has none because
/// another axis is empty.
fn countable(shape: &[usize]) -> bool {
    let places = shape.iter().try_fold(1usize, |places, &n| places.checked_mul(n.max(1)));
    places.is_some_and(|places| i64::try_from(places).is_ok())
}

fn named(partial: &Path, path: &Path) -> Result<(), IoError> {
    File::open(partial)?.sync_all()?;
    std::fs::rename(partial, path)?;
    // The new name is data of the folder. Where a folder cannot be opened, the system has to do without.
    match path.parent().and_then(|folder| File::open(folder).ok()) {
        Some(folder) => folder.sync_all(),
        None => Ok(()),
    }
}

fn from_safetensors(bytes: &[u8]) -> Result<Weights<'_>, safetensors::SafeTensorError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let tensors = SafeTensors::deserialize(bytes)?.tensors().into_iter().map(|(name, view)| {
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        (name, RawTensor { dtype, shape, data: Cow::Borrowed(view.data()) })
    });
    Ok(Weights { tensors: tensors.collect(), metadata, ..Weights::default() })
}
