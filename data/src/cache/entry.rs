//! One volume as a Zarr v3 array: chunks of 48 x 48 x 16 voxels in a single shard. It is written and read here rather than through a
//! library for Zarr: the one for Rust knows no differences, and was a fifth of the binary.

use super::Bits;
use super::chunk::{self, Packer, Unpacker};
use crate::affine::Affine;
use crate::volume::Volume;
use crc32c::crc32c;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_128;

/// Voxels of a chunk. Where a sample lies at random, whole chunks are twice the voxels of its 192 x 192 x 64; with 64³ they would be
/// 3.6 times as many. Smaller ones cost more, one by one, than they save.
const CHUNK: [usize; 3] = [48, 48, 16];
const VOXELS: usize = CHUNK[0] * CHUNK[1] * CHUNK[2];
/// Of a volume: 8 GiB as f32, as much as is read from a file.
const MOST_VOXELS: usize = 1 << 31;
/// What stands for a chunk of zeros in the index of a shard.
const ALL_ZERO: [u64; 2] = [u64::MAX; 2];
const CUT_SHORT: &str = "the shard is cut short";
/// The two files of an array, relative to its folder.
pub(super) const DESCRIPTION: &str = "zarr.json";
pub(super) const SHARD: &str = "c/0/0/0";

/// What went wrong, in a few words.
pub(super) type Problem = String;

/// Why an entry cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not what was written, and of no use any more.
    #[error("{0}")]
    Damaged(Problem),
    /// Nobody knows: it cannot be read at this time.
    #[error("{0}")]
    Unreachable(Problem),
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Fault {
        Fault::Damaged(problem)
    }
}

impl From<&str> for Fault {
    fn from(problem: &str) -> Fault {
        Fault::Damaged(problem.into())
    }
}

impl From<std::io::Error> for Fault {
    /// Files that are gone or cut short stay so; a disk or network that fails, or too many open files, may be over soon.
    fn from(error: std::io::Error) -> Fault {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::UnexpectedEof => Fault::Damaged(text(error)),
            _ => Fault::Unreachable(text(error)),
        }
    }
}

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

/// What `zarr.json` says.
fn description(dims: [usize; 3], bits: Bits, attributes: &Map<String, Value>) -> Value {
    let shard = [0, 1, 2].map(|i| dims[i].next_multiple_of(CHUNK[i]));
    let index = json!([{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]);
    let sharding = json!({
        "chunk_shape": CHUNK, "codecs": chunk::codecs(bits), "index_codecs": index, "index_location": "end",
    });
    json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": dims,
        "data_type": format!("uint{}", u8::from(bits)),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": attributes,
        "dimension_names": ["x", "y", "z"],
    })
}

/// Of what the chunks' own checksums do not cover.
fn checksum(dims: [usize; 3], affine: &Affine) -> String {
    format!("{:032x}", xxh3_128(format!("{dims:?} {affine:?}").as_bytes()))
}

/// The entry of `volume`. `about` goes into the array's attributes.
pub(super) fn encode(volume: &Volume, bits: Bits, about: &Map<String, Value>) -> Result<Blobs, Problem> {
    let mut attributes = about.clone();
    attributes.insert("affine".into(), json!(volume.affine));
    attributes.insert("intensity_of_one".into(), json!(bits.most()));
    attributes.insert("checksum".into(), json!(checksum(volume.dims, &volume.affine)));
    let description = serde_json::to_vec_pretty(&description(volume.dims, bits, &attributes)).map_err(text)?;
    let (mut shard, mut index) = (Vec::new(), Vec::new());
    let (mut packer, mut levels) = (Packer::new(bits)?, Vec::with_capacity(VOXELS));
    for at in within([0; 3], grid(volume.dims)) {
        chunk_levels(volume, bits, at, &mut levels);
        let place = match levels.iter().all(|&level| level == 0) {
            true => ALL_ZERO,
            false => {
                let packed = packer.pack(&levels)?;
                shard.extend_from_slice(packed);
                [shard.len() - packed.len(), packed.len()].map(|n| n as u64)
            }
        };
        index.extend(place.map(u64::to_le_bytes).concat());
    }
    shard.extend_from_slice(&index);
    shard.extend(crc32c(&index).to_le_bytes());
    Ok(Blobs { description, shard })
}

/// The levels of chunk `at`, 0 outside the volume.
fn chunk_levels(volume: &Volume, bits: Bits, at: [usize; 3], levels: &mut Vec<u16>) {
    let first = [0, 1, 2].map(|i| at[i] * CHUNK[i]);
    let size = [0, 1, 2].map(|i| CHUNK[i].min(volume.dims[i] - first[i]));
    levels.clear();
    levels.resize(VOXELS, 0);
    for (x, y) in (0..size[0]).flat_map(|x| (0..size[1]).map(move |y| (x, y))) {
        let line = ((first[0] + x) * volume.dims[1] + first[1] + y) * volume.dims[2] + first[2];
        let row = &mut levels[(x * CHUNK[1] + y) * CHUNK[2]..];
        row.iter_mut().zip(&volume.data[line..line + size[2]]).for_each(|(level, &v)| *level = bits.level(v));
    }
}

/// Chunks of a volume; none where it has no voxels, or more than this project's volumes ever have.
fn chunks(dims: [usize; 3]) -> Option<usize> {
    let voxels = dims.iter().try_fold(1usize, |voxels, &n| voxels.checked_mul(n));
    voxels.filter(|voxels| (1..=MOST_VOXELS).contains(voxels)).map(|_| grid(dims).iter().product())
}

/// Bytes of the index of so many chunks: offset and length of each, and a CRC-32C.
fn index_length(chunks: usize) -> u64 {
    (chunks * size_of::<[u64; 2]>() + size_of::<u32>()) as u64
}

/// Chunks along each axis.
fn grid(dims: [usize; 3]) -> [usize; 3] {
    [0, 1, 2].map(|i| dims[i].div_ceil(CHUNK[i]))
}

impl Entry {
    /// Errors: a description that is not word for word what [`encode`] writes for a volume.
    pub(super) fn of(files: Files) -> Result<Entry, Fault> {
        let found: Value = serde_json::from_slice(&files.description).map_err(text)?;
        let attributes = found.get("attributes").and_then(Value::as_object).ok_or("it has no attributes")?;
        let bits = match attributes.get("intensity_of_one").and_then(Value::as_f64) {
            Some(255.0) => Bits::Eight,
            Some(65535.0) => Bits::Sixteen,
            _ => return Err("its levels are unknown".into()),
        };
        let dims = found.get("shape").and_then(|shape| serde_json::from_value(shape.clone()).ok());
        let dims = dims.ok_or("it is no array of three axes")?;
        if chunks(dims).is_none_or(|chunks| index_length(chunks) > files.length) {
            return Err(CUT_SHORT.into());
        }
        let affine = attributes.get("affine").and_then(|a| serde_json::from_value(a.clone()).ok());
        let affine = affine.ok_or("it has no affine")?;
        let noted = attributes.get("checksum").and_then(Value::as_str);
        if noted != Some(&checksum(dims, &affine)) || found != description(dims, bits, attributes) {
            return Err("its description was changed".into());
        }
        Ok(Entry { files, bits, dims, affine })
    }

    /// All of it.
    ///
    /// Errors: as [`Entry::read`].
    pub(super) fn read_all(&self) -> Result<Volume, Fault> {
        self.read([0; 3], self.dims)
    }

    /// The box of `size` voxels at `corner`, 0 outside the volume. Only the chunks that it touches are read.
    ///
    /// Errors: a chunk whose checksum is wrong, a file that is cut short, or one that cannot be read now.
    pub fn read(&self, corner: [isize; 3], size: [usize; 3]) -> Result<Volume, Fault> {
        let low = corner.map(|c| c.max(0) as usize);
        let high = [0, 1, 2].map(|i| (corner[i] + size[i] as isize).clamp(0, self.dims[i] as isize) as usize);
        let dims = [0, 1, 2].map(|i| high[i].saturating_sub(low[i]));
        let affine = crate::affine::shifted(&self.affine, low.map(|l| l as f64));
        let mut read = Volume { data: Vec::with_capacity(dims.iter().product()), dims, affine };
        self.fill(low, &mut read)?;
        let start = [0, 1, 2].map(|i| corner[i] - low[i] as isize);
        Ok(if dims == size { read } else { read.extract(start, size) })
    }

    /// Fills `to`, a box without voxels yet, whose first is at `low` in the volume.
    fn fill(&self, low: [usize; 3], to: &mut Volume) -> Result<(), Fault> {
        if to.dims.contains(&0) {
            return Ok(());
        }
        let grid = grid(self.dims);
        let index = self.files.index(grid.iter().product())?;
        let mut unpacker = Unpacker::new(self.bits, VOXELS).map_err(Fault::Unreachable)?;
        let mut stored = Vec::new();
        let first = [0, 1, 2].map(|i| low[i] / CHUNK[i]);
        let past = [0, 1, 2].map(|i| (low[i] + to.dims[i]).div_ceil(CHUNK[i]));
        for x in first[0]..past[0] {
            // zeroed as far as the next chunks reach, so that they find it in the cache
            let planes = to.dims[0].min((x + 1) * CHUNK[0] - low[0]);
            to.data.resize(planes * to.dims[1] * to.dims[2], 0.0);
            for y in first[1]..past[1] {
                let places = &index[(x * grid[1] + y) * grid[2]..][first[2]..past[2]];
                let begin = self.files.read_chunks(places, &mut stored)?;
                for (z, &[offset, length]) in (first[2]..).zip(places).filter(|(_, place)| **place != ALL_ZERO) {
                    let levels = unpacker.unpack(&stored[(offset - begin) as usize..][..length as usize])?;
                    self.copy(levels, [x * CHUNK[0], y * CHUNK[1], z * CHUNK[2]], low, to);
                }
            }
        }
        Ok(())
    }

    /// The rows of a chunk, which begins at voxel `from` of the volume, that lie in `to`, which begins at `low`.
    fn copy(&self, levels: &[u16], from: [usize; 3], low: [usize; 3], to: &mut Volume) {
        let start = [0, 1, 2].map(|i| from[i].max(low[i]));
        let end = [0, 1, 2].map(|i| (from[i] + CHUNK[i]).min(low[i] + to.dims[i]));
        let (rows, _) = levels.as_chunks::<{ CHUNK[2] }>();
        let (part, place) = (start[2] - from[2]..end[2] - from[2], start[2] - low[2]..end[2] - low[2]);
        for x in start[0]..end[0] {
            let rows = &rows[(x - from[0]) * CHUNK[1]..][start[1] - from[1]..end[1] - from[1]];
            let lines = to.data[((x - low[0]) * to.dims[1] + start[1] - low[1]) * to.dims[2]..].chunks_mut(to.dims[2]);
            for (row, line) in rows.iter().zip(lines) {
                let line = &mut line[place.clone()];
                let set = |(v, &level): (&mut f32, &u16)| *v = self.bits.intensity(level);
                match <&mut [f32; CHUNK[2]]>::try_from(&mut *line) {
                    Ok(line) => line.iter_mut().zip(row).for_each(set), // of known length: in vectors
                    Err(_) => line.iter_mut().zip(&row[part.clone()]).for_each(set),
                }
            }
        }
    }
}

/// Every index from `first` to before `past`, the last axis fastest.
fn within(first: [usize; 3], past: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [along_x, along_y, along_z] = [0, 1, 2].map(|i| first[i]..past[i]);
    let lines = along_x.flat_map(move |x| along_y.clone().map(move |y| [x, y]));
    lines.flat_map(move |[x, y]| along_z.clone().map(move |z| [x, y, z]))
}

pub(super) fn text(error: impl std::fmt::Display) -> Problem {
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
    /// Those of the array in folder `at`; `None` where nothing is there, or where it made way meanwhile.
    pub(super) fn open(at: &Path) -> Option<Result<Files, Fault>> {
        let is_gone = || at.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound);
        match Files::both(at) {
            Err(_) if is_gone() => None,
            opened => Some(opened.map_err(Fault::from)),
        }
    }

    fn both(at: &Path) -> std::io::Result<Files> {
        let shard = File::open(at.join(SHARD))?;
        let length = shard.metadata()?.len();
        Ok(Files { description: std::fs::read(at.join(DESCRIPTION))?, shard: Mutex::new(Box::new(shard)), length })
    }

    #[cfg(feature = "object-store")]
    pub(super) fn of(entry: Blobs) -> Files {
        let (length, shard) = (entry.shard.len() as u64, std::io::Cursor::new(entry.shard));
        Files { description: entry.description, shard: Mutex::new(Box::new(shard)), length }
    }

    /// Offset and length in the shard of each of its `chunks` chunks: pairs of u64 at its end, followed by their CRC-32C.
    fn index(&self, chunks: usize) -> Result<Vec<[u64; 2]>, Fault> {
        let length = index_length(chunks);
        let mut bytes = Vec::new();
        self.read_at(self.length.checked_sub(length).ok_or(CUT_SHORT)?, length, &mut bytes)?;
        let (numbers, sum) = bytes.split_at(bytes.len() - size_of::<u32>());
        if sum != crc32c(numbers).to_le_bytes() {
            return Err("the index of its chunks was changed".into());
        }
        let (numbers, _) = numbers.as_chunks();
        let (pairs, _) = numbers.as_chunks();
        Ok(pairs.iter().map(|pair: &[[u8; 8]; 2]| pair.map(u64::from_le_bytes)).collect())
    }

    /// Reads chunks into `bytes`, which then begins at the offset that is returned. Those of one row follow each other in the shard.
    fn read_chunks(&self, places: &[[u64; 2]], bytes: &mut Vec<u8>) -> Result<u64, Fault> {
        let places = places.iter().filter(|place| **place != ALL_ZERO);
        let Some(begin) = places.clone().map(|[offset, _]| *offset).min() else { return Ok(0) };
        let ends = places.map(|[offset, length]| offset.checked_add(*length)).collect::<Option<Vec<u64>>>();
        let end = ends.and_then(|ends| ends.into_iter().max()).ok_or(CUT_SHORT)?;
        self.read_at(begin, end - begin, bytes)?;
        Ok(begin)
    }

    fn read_at(&self, offset: u64, length: u64, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(CUT_SHORT.into());
        }
        bytes.resize(length as usize, 0);
        // the position is set before every use, also after a panic
        let mut shard = self.shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.seek(SeekFrom::Start(offset))?;
        Ok(shard.read_exact(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that answers with an error.
    struct Failing(ErrorKind);

    impl Seek for Failing {
        fn seek(&mut self, _: SeekFrom) -> std::io::Result<u64> {
            Ok(0)
        }
    }

    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_disk_that_fails_is_told_from_damage() {
        let volume = Volume { data: vec![0.5; 8], dims: [2; 3], affine: crate::affine::IDENTITY };
        let read = |kind| {
            let Blobs { description, shard } = encode(&volume, Bits::Eight, &Map::new()).unwrap();
            let (length, shard) = (shard.len() as u64, Mutex::new(Box::new(Failing(kind)) as Box<dyn Shard>));
            Entry::of(Files { description, shard, length }).unwrap().read([0; 3], [2; 3]).unwrap_err()
        };
        assert!(matches!(read(ErrorKind::UnexpectedEof), Fault::Damaged(_)));
        for kind in [ErrorKind::StaleNetworkFileHandle, ErrorKind::PermissionDenied, ErrorKind::Other] {
            assert!(matches!(read(kind), Fault::Unreachable(_)), "{kind:?}");
        }
    }

    #[test]
    fn sizes_that_no_volume_has_are_none() {
        assert_eq!(chunks([48, 49, 1]), Some(2));
        assert_eq!(chunks([1 << 11, 1 << 10, 1 << 10]), Some(43 * 22 * 64));
        for dims in [[0, 5, 5], [usize::MAX, 2, 2], [1 << 31, 2, 1], [1 << 40, 1 << 40, 0]] {
            assert_eq!(chunks(dims), None, "{dims:?}");
        }
    }
}
