//! One volume as a Zarr v3 array: 64³ chunks, zstd and a checksum each, in a single shard. Any Zarr v3 reader opens it.

use super::Bits;
use crate::affine::Affine;
use crate::volume::Volume;
use crc32c::crc32c;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128;
use zarrs::array::codec::ZstdCodec;
use zarrs::array::{Array, ArrayBuilder, CodecOptions, FillValue, data_type};
use zarrs::metadata::ArrayMetadata;
use zarrs::storage::store::MemoryStore;
use zarrs::storage::{ReadableStorageTraits, StoreKey};
use zstd::bulk::Decompressor;

/// Side of a chunk in voxels.
const SIDE: usize = 64;
const ZSTD_LEVEL: i32 = 9;
/// What stands for a chunk of zeros in the index of a shard.
const ALL_ZERO: [u64; 2] = [u64::MAX; 2];
const CUT_SHORT: &str = "the shard is cut short";
/// In zstd's own frames: Zarr's checksum codec does not look when a part of a chunk is wanted.
const CHECKSUM: bool = true;
/// The two files of an array, relative to its folder.
pub(super) const DESCRIPTION: &str = "zarr.json";
pub(super) const SHARD: &str = "c/0/0/0";

/// Why an entry cannot be written or read, in a few words.
pub(super) type Problem = String;

/// A stored volume, open for reading. It stays readable when it is evicted meanwhile.
pub struct Entry {
    files: Files,
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
fn array(
    store: Arc<MemoryStore>,
    dims: [usize; 3],
    bits: Bits,
    attributes: Map<String, Value>,
) -> Result<Array<MemoryStore>, Problem> {
    let shape = dims.map(|n| n as u64);
    let shard = shape.map(|n| n.next_multiple_of(SIDE as u64));
    let (kind, fill) = match bits {
        Bits::Eight => (data_type::uint8(), FillValue::from(0u8)),
        Bits::Sixteen => (data_type::uint16(), FillValue::from(0u16)),
    };
    ArrayBuilder::new(shape.to_vec(), shard.to_vec(), kind, fill)
        .subchunk_shape(vec![SIDE as u64; 3])
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
    let blob = |name| -> Result<Option<Vec<u8>>, Problem> {
        let bytes = store.get(&StoreKey::new(name).map_err(text)?).map_err(text)?;
        Ok(bytes.map(Vec::from))
    };
    let description = blob(DESCRIPTION)?.ok_or("it has no description")?;
    Ok(Blobs { description, shard: blob(SHARD)?.unwrap_or_else(|| shard_of_zeros(grid(volume.dims).iter().product())) })
}

/// Chunks along each axis.
fn grid(dims: [usize; 3]) -> [usize; 3] {
    dims.map(|n| n.div_ceil(SIDE))
}

/// What zarrs leaves out: a shard that has none of its chunks, an index and its checksum.
fn shard_of_zeros(chunks: usize) -> Vec<u8> {
    let mut shard = ALL_ZERO.map(u64::to_le_bytes).concat().repeat(chunks);
    shard.extend(crc32c(&shard).to_le_bytes());
    shard
}

impl Entry {
    /// Errors: a description that is not word for word what [`encode`] writes for a volume.
    pub(super) fn of(files: Files) -> Result<Entry, Problem> {
        let ArrayMetadata::V3(found) = serde_json::from_slice(&files.description).map_err(text)? else {
            return Err("it is no Zarr v3 array".into());
        };
        let attributes = &found.attributes;
        let bits = match attributes.get("intensity_of_one").and_then(Value::as_f64) {
            Some(255.0) => Bits::Eight,
            Some(65535.0) => Bits::Sixteen,
            _ => return Err("its levels are unknown".into()),
        };
        let dims: Vec<usize> = found.shape.iter().map(|&n| n as usize).collect();
        let dims = dims.try_into().map_err(|_| "it is no array of three axes")?;
        let affine = attributes.get("affine").and_then(|a| serde_json::from_value(a.clone()).ok());
        let affine = affine.ok_or("it has no affine")?;
        let noted = attributes.get("checksum").and_then(Value::as_str);
        let ours = array(Arc::new(MemoryStore::new()), dims, bits, attributes.clone())?;
        if noted != Some(&checksum(dims, &affine)) || ArrayMetadata::V3(found) != *ours.metadata() {
            return Err("its description was changed".into());
        }
        Ok(Entry { files, bits, dims, affine })
    }

    /// The box of `size` voxels at `corner`, 0 outside the volume. Only the chunks that it touches are read.
    ///
    /// Errors: a chunk whose checksum is wrong, or a file that is cut short or gone.
    pub fn read(&self, corner: [isize; 3], size: [usize; 3]) -> Result<Volume, Problem> {
        let low = corner.map(|c| c.max(0) as usize);
        let high = [0, 1, 2].map(|i| (corner[i] + size[i] as isize).clamp(0, self.dims[i] as isize) as usize);
        let dims = [0, 1, 2].map(|i| high[i].saturating_sub(low[i]));
        let affine = crate::affine::shifted(&self.affine, low.map(|l| l as f64));
        let mut read = Volume { data: vec![0.0; dims.iter().product()], dims, affine };
        self.fill(low, &mut read)?;
        let start = [0, 1, 2].map(|i| corner[i] - low[i] as isize);
        Ok(if dims == size { read } else { read.extract(start, size) })
    }

    /// Fills `to`, a box of zeros whose first voxel is at `low` in the volume. Chunks are decoded whole, and here: zarrs goes through the
    /// voxels of a part of a chunk by index, and copies those of a whole one twice, which takes longer than to decode them.
    fn fill(&self, low: [usize; 3], to: &mut Volume) -> Result<(), Problem> {
        if to.data.is_empty() {
            return Ok(());
        }
        let grid = grid(self.dims);
        let index = self.files.index(grid.iter().product())?;
        let mut zstd = Decompressor::new().map_err(text)?;
        let mut chunk = vec![0; SIDE.pow(3) * self.bits.bytes()];
        let past = [0, 1, 2].map(|i| (low[i] + to.dims[i]).div_ceil(SIDE));
        for at in within(low.map(|l| l / SIDE), past) {
            let [offset, length] = index[(at[0] * grid[1] + at[1]) * grid[2] + at[2]];
            if [offset, length] == ALL_ZERO {
                continue;
            }
            let stored = self.files.of_shard(offset, length)?;
            if zstd.decompress_to_buffer(&stored, &mut chunk[..]).map_err(text)? != chunk.len() {
                return Err("a chunk is cut short".into());
            }
            self.copy(&chunk, at.map(|i| i * SIDE), low, to);
        }
        Ok(())
    }

    /// The rows of `chunk`, which begins at voxel `from` of the volume, that lie in `to`, which begins at `low`.
    fn copy(&self, chunk: &[u8], from: [usize; 3], low: [usize; 3], to: &mut Volume) {
        let start = [0, 1, 2].map(|i| from[i].max(low[i]));
        let end = [0, 1, 2].map(|i| (from[i] + SIDE).min(low[i] + to.dims[i]));
        for [x, y, z] in within(start, [end[0], end[1], start[2] + 1]) {
            let row = ((x - from[0]) * SIDE + y - from[1]) * SIDE + z - from[2];
            let line = ((x - low[0]) * to.dims[1] + y - low[1]) * to.dims[2] + z - low[2];
            self.bits.read(&chunk[row * self.bits.bytes()..], &mut to.data[line..line + end[2] - z]);
        }
    }
}

/// Every index from `first` to before `past`, the last axis fastest.
fn within(first: [usize; 3], past: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [along_x, along_y, along_z] = [0, 1, 2].map(|i| first[i]..past[i]);
    let lines = along_x.flat_map(move |x| along_y.clone().map(move |y| [x, y]));
    lines.flat_map(move |[x, y]| along_z.clone().map(move |z| [x, y, z]))
}

/// The loader's threads each read a sample: more threads for one would only get in their way.
fn one_thread() -> CodecOptions {
    CodecOptions::default().with_concurrent_target(1)
}

fn text(error: impl std::fmt::Display) -> Problem {
    error.to_string()
}

/// The files of one array, open for reading.
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

    /// Offset and length in the shard of each of its `chunks` chunks: pairs of u64 at its end, followed by their CRC-32C.
    fn index(&self, chunks: usize) -> Result<Vec<[u64; 2]>, Problem> {
        let length = (chunks * size_of::<[u64; 2]>() + size_of::<u32>()) as u64;
        let bytes = self.of_shard(self.length.checked_sub(length).ok_or(CUT_SHORT)?, length)?;
        let (numbers, sum) = bytes.split_at(bytes.len() - size_of::<u32>());
        if sum != crc32c(numbers).to_le_bytes() {
            return Err("the index of its chunks was changed".into());
        }
        let (numbers, _) = numbers.as_chunks();
        let (pairs, _) = numbers.as_chunks();
        Ok(pairs.iter().map(|pair: &[[u8; 8]; 2]| pair.map(u64::from_le_bytes)).collect())
    }

    fn of_shard(&self, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(CUT_SHORT.into());
        }
        let mut bytes = vec![0; length as usize];
        // the position is set before every use, also after a panic
        let mut shard = self.shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.seek(SeekFrom::Start(offset)).and_then(|_| shard.read_exact(&mut bytes)).map_err(text)?;
        Ok(bytes)
    }
}
