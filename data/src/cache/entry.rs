//! One volume as a Zarr v3 array: 64³ chunks, zstd and a checksum each, in a single shard. Any Zarr v3 reader opens it.

use super::Bits;
use crate::affine::Affine;
use crate::volume::Volume;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128;
use zarrs::array::codec::ZstdCodec;
use zarrs::array::{Array, ArrayBuilder, ArraySubset, CodecOptions, FillValue, data_type};
use zarrs::storage::byte_range::{ByteRange, ByteRangeIterator};
use zarrs::storage::store::MemoryStore;
use zarrs::storage::{Bytes, MaybeBytesIterator, ReadableStorageTraits, StorageError, StoreKey};

/// Side of a chunk in voxels.
const CHUNK: u64 = 64;
const ZSTD_LEVEL: i32 = 9;
/// In zstd's own frames: Zarr's checksum codec does not look when a part of a chunk is wanted.
const CHECKSUM: bool = true;
/// The two files of an array, relative to its folder.
pub(super) const DESCRIPTION: &str = "zarr.json";
pub(super) const SHARD: &str = "c/0/0/0";

/// Why an entry cannot be written or read, in a few words.
pub(super) type Problem = String;

/// A stored volume, open for reading. It stays readable when it is evicted meanwhile.
pub struct Entry {
    array: Array<Files>,
    bits: Bits,
    pub dims: [usize; 3],
    affine: Affine,
}

/// What the two files of an entry hold.
pub(super) struct Blobs {
    pub description: Vec<u8>,
    pub shard: Vec<u8>,
}

/// An array for volumes of these dims, and nothing in it yet.
fn array<S: ?Sized>(
    store: Arc<S>,
    dims: [usize; 3],
    bits: Bits,
    attributes: Map<String, Value>,
) -> Result<Array<S>, Problem> {
    let shape = dims.map(|n| n as u64);
    let shard = shape.map(|n| n.next_multiple_of(CHUNK));
    let (kind, fill) = match bits {
        Bits::Eight => (data_type::uint8(), FillValue::from(0u8)),
        Bits::Sixteen => (data_type::uint16(), FillValue::from(0u16)),
    };
    ArrayBuilder::new(shape.to_vec(), shard.to_vec(), kind, fill)
        .subchunk_shape(vec![CHUNK; 3])
        .bytes_to_bytes_codecs(vec![Arc::new(ZstdCodec::new(ZSTD_LEVEL, CHECKSUM))])
        .dimension_names(["x", "y", "z"].into())
        .attributes(attributes)
        .build(store, "/")
        .map_err(text)
}

/// Of what the chunks' own checksums do not cover.
fn checksum(dims: [usize; 3], affine: &Affine) -> String {
    format!("{:032x}", xxh3_128(format!("{dims:?} {affine:?}").as_bytes()))
}

/// The entry of `volume`. `about` goes into the array's attributes.
pub(super) fn encode(volume: &Volume, bits: Bits, about: &Map<String, Value>) -> Result<Blobs, Problem> {
    let store = Arc::new(MemoryStore::new());
    let mut attributes = about.clone();
    attributes.insert("affine".into(), json!(volume.affine));
    attributes.insert("intensity_of_one".into(), json!(bits.most()));
    attributes.insert("checksum".into(), json!(checksum(volume.dims, &volume.affine)));
    let array = array(store.clone(), volume.dims, bits, attributes)?;
    array.store_metadata().map_err(text)?;
    let (all, options) = (array.subset_all(), one_thread());
    match bits {
        Bits::Eight => {
            let levels: Vec<u8> = volume.data.iter().map(|&v| bits.level(v) as u8).collect();
            array.store_array_subset_opt(&all, &levels, &options)
        }
        Bits::Sixteen => {
            let levels: Vec<u16> = volume.data.iter().map(|&v| bits.level(v)).collect();
            array.store_array_subset_opt(&all, &levels, &options)
        }
    }
    .map_err(text)?;
    let blob = |name| -> Result<Vec<u8>, Problem> {
        let bytes = store.get(&StoreKey::new(name).map_err(text)?).map_err(text)?;
        // a volume of nothing but zeros has no shard
        Ok(bytes.unwrap_or_default().into())
    };
    Ok(Blobs { description: blob(DESCRIPTION)?, shard: blob(SHARD)? })
}

impl Entry {
    /// Errors: a description that is not word for word what [`encode`] writes for a volume.
    pub(super) fn of(files: Files) -> Result<Entry, Problem> {
        let found = Array::open(Arc::new(files), "/").map_err(text)?;
        let attributes = found.attributes();
        let bits = match attributes.get("intensity_of_one").and_then(Value::as_f64) {
            Some(255.0) => Bits::Eight,
            Some(65535.0) => Bits::Sixteen,
            _ => return Err("its levels are unknown".into()),
        };
        let dims: Vec<usize> = found.shape().iter().map(|&n| n as usize).collect();
        let dims = dims.try_into().map_err(|_| "it is no array of three axes")?;
        let affine = attributes.get("affine").and_then(|a| serde_json::from_value(a.clone()).ok());
        let affine = affine.ok_or("it has no affine")?;
        let noted = attributes.get("checksum").and_then(Value::as_str);
        let ours = array(Arc::new(MemoryStore::new()), dims, bits, attributes.clone())?;
        if noted != Some(&checksum(dims, &affine)) || found.metadata() != ours.metadata() {
            return Err("its description was changed".into());
        }
        Ok(Entry { bits, dims, affine, array: found })
    }

    /// The box of `size` voxels at `corner`, 0 outside the volume. Only the chunks that it touches are read.
    ///
    /// Errors: a chunk whose checksum is wrong, or a file that is cut short or gone.
    pub fn read(&self, corner: [isize; 3], size: [usize; 3]) -> Result<Volume, Problem> {
        let low = corner.map(|c| c.max(0) as usize);
        let high = [0, 1, 2].map(|i| (corner[i] + size[i] as isize).clamp(0, self.dims[i] as isize) as usize);
        let inside = [0, 1, 2].map(|i| high[i].saturating_sub(low[i]));
        let data = match inside.contains(&0) {
            true => Vec::new(),
            false => self.levels(&ArraySubset::new_with_ranges(&[0, 1, 2].map(|i| low[i] as u64..high[i] as u64)))?,
        };
        let affine = crate::affine::shifted(&self.affine, low.map(|l| l as f64));
        let read = Volume { data, dims: inside, affine };
        let start = [0, 1, 2].map(|i| corner[i] - low[i] as isize);
        Ok(if inside == size { read } else { read.extract(start, size) })
    }

    fn levels(&self, subset: &ArraySubset) -> Result<Vec<f32>, Problem> {
        let options = one_thread();
        let bits = self.bits;
        Ok(match bits {
            Bits::Eight => {
                let levels: Vec<u8> = self.array.retrieve_array_subset_opt(subset, &options).map_err(text)?;
                levels.into_iter().map(|level| bits.intensity(level.into())).collect()
            }
            Bits::Sixteen => {
                let levels: Vec<u16> = self.array.retrieve_array_subset_opt(subset, &options).map_err(text)?;
                levels.into_iter().map(|level| bits.intensity(level)).collect()
            }
        })
    }
}

/// The loader's threads each read a sample: more threads for one would only get in their way.
fn one_thread() -> CodecOptions {
    CodecOptions::default().with_concurrent_target(1)
}

fn text(error: impl std::fmt::Display) -> Problem {
    error.to_string()
}

/// The files of one array, open for reading. Zarr takes a missing file for zeros; here it is an error.
pub(super) struct Files {
    description: Vec<u8>,
    shard: Mutex<Box<dyn Shard>>,
    length: u64,
}

trait Shard: Read + Seek + Send {}
impl<T: Read + Seek + Send> Shard for T {}

impl Files {
    /// Those of the array in folder `at`; `None` where there is none.
    pub(super) fn open(at: &Path) -> Option<Result<Files, Problem>> {
        let open = || {
            let shard = File::open(at.join(SHARD))?;
            let length = shard.metadata()?.len();
            Ok(Files { description: std::fs::read(at.join(DESCRIPTION))?, shard: Mutex::new(Box::new(shard)), length })
        };
        at.join(DESCRIPTION).exists().then(|| open().map_err(|e: std::io::Error| text(e)))
    }

    #[cfg(feature = "object-store")]
    pub(super) fn of(entry: Blobs) -> Files {
        let (length, shard) = (entry.shard.len() as u64, std::io::Cursor::new(entry.shard));
        Files { description: entry.description, shard: Mutex::new(Box::new(shard)), length }
    }

    fn of_shard(&self, range: ByteRange) -> Result<Bytes, StorageError> {
        let (offset, length) = match range {
            ByteRange::FromStart(offset, length) => (Some(offset), length.or(self.length.checked_sub(offset))),
            ByteRange::Suffix(length) => (self.length.checked_sub(length), Some(length)),
        };
        let (Some(offset), Some(length)) = (offset, length) else { return Err(cut_short()) };
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(cut_short());
        }
        let mut bytes = vec![0; length as usize];
        // the position is set before every use, also after a panic
        let mut shard = self.shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.seek(SeekFrom::Start(offset))?;
        shard.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

fn cut_short() -> StorageError {
    StorageError::Other("the shard is cut short".into())
}

impl ReadableStorageTraits for Files {
    fn get_partial_many<'a>(
        &'a self,
        key: &StoreKey,
        ranges: ByteRangeIterator<'a>,
    ) -> Result<MaybeBytesIterator<'a>, StorageError> {
        let is_shard = match key.as_str() {
            SHARD => true,
            DESCRIPTION => false, // only ever read whole
            _ => return Ok(None),
        };
        Ok(Some(Box::new(ranges.map(move |range| match is_shard {
            true => self.of_shard(range),
            false => Ok(self.description.clone().into()),
        }))))
    }

    fn size_key(&self, key: &StoreKey) -> Result<Option<u64>, StorageError> {
        Ok(match key.as_str() {
            DESCRIPTION => Some(self.description.len() as u64),
            SHARD => Some(self.length),
            _ => None,
        })
    }

    fn supports_get_partial(&self) -> bool {
        true
    }
}
