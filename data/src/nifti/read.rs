//! Voxels in: the file is streamed slab by slab, converted to f32 and turned from x-fastest to z-fastest on the way.

use super::header::{Header, Kind, SIZES, is_version2};
use crate::error::{Error, Result};
use crate::volume::Volume;
use flate2::bufread::MultiGzDecoder;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Slices converted at a time, and side of a tile: 16 floats along z are one cache line.
const SLAB: usize = 16;
/// Deflate cannot compress better than this.
const MAX_RATIO: u64 = 1032;
const BROKEN: &str = "the file is cut short or damaged: copy or download it again";

/// Reads an image in its stored unit (HU for CT) as f32, in the file's own orientation. For a pair, name the `.hdr` or `.img`.
///
/// Errors: unreadable, truncated or damaged files; more than one volume; RGB or complex voxels.
pub fn read(path: &Path) -> Result<Volume> {
    let header_path = sibling(path, ".img", ".hdr");
    let mut stream = Stream::open(&header_path)?;
    let header = stream.header()?;
    if header.single_file { stream.voxels(&header) } else { Stream::open(&image_of(&header_path))?.voxels(&header) }
}

/// Reads a label volume. Errors as [`read`], and when a voxel is not a whole number below 2²⁴.
pub fn read_label(path: &Path) -> Result<Volume<i32>> {
    let Volume { data, dims, affine } = read(path)?;
    if let Some(v) = data.iter().find(|v| v.fract() != 0.0 || v.abs() >= (1 << 24) as f32) {
        return Err(Error::file(path, format!("holds {v}, which is no label"), "give the label volume, not an image"));
    }
    Ok(Volume { data: data.into_par_iter().map(|v| v as i32).collect(), dims, affine })
}

/// The files that make up a volume: one, or the two of a pair.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let header = sibling(path, ".img", ".hdr");
    let image = image_of(&header);
    if image == header || !image.exists() { vec![header] } else { vec![header, image] }
}

/// The other file of a pair: `x.img` ↔ `x.hdr`, keeping a trailing `.gz`.
fn sibling(path: &Path, from: &str, to: &str) -> PathBuf {
    let name = path.to_string_lossy();
    let (stem, gz) = name.strip_suffix(".gz").map_or((&*name, ""), |stem| (stem, ".gz"));
    stem.strip_suffix(from).map_or_else(|| path.to_owned(), |stem| PathBuf::from(format!("{stem}{to}{gz}")))
}

/// The voxels of a header file, whichever of the two files is compressed.
fn image_of(header: &Path) -> PathBuf {
    let image = sibling(header, ".hdr", ".img");
    let name = image.to_string_lossy();
    let other = name.strip_suffix(".gz").map_or_else(|| PathBuf::from(format!("{name}.gz")), PathBuf::from);
    if !image.exists() && other.exists() { other } else { image }
}

/// A file being read, unzipped where its first bytes say so, and how many bytes it can yield at most.
struct Stream<'a> {
    path: &'a Path,
    reader: Box<dyn Read>,
    limit: u64,
    position: u64,
}

impl<'a> Stream<'a> {
    fn open(path: &'a Path) -> Result<Stream<'a>> {
        let io = |e| Error::io(path, e, "check the path and its permissions");
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let zipped = reader.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
        let (reader, limit): (Box<dyn Read>, u64) = match zipped {
            true => (Box::new(MultiGzDecoder::new(reader)), length.saturating_mul(MAX_RATIO)),
            false => (Box::new(reader), length),
        };
        Ok(Stream { path, reader, limit, position: 0 })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.position += bytes.len() as u64;
        self.reader.read_exact(bytes).map_err(|e| Error::io(self.path, e, BROKEN))
    }

    fn header(&mut self) -> Result<Header> {
        let mut bytes = vec![0; SIZES[0]];
        self.fill(&mut bytes)?;
        if is_version2(&bytes) {
            bytes.resize(SIZES[1], 0);
            self.fill(&mut bytes[SIZES[0]..])?;
        }
        Header::parse(&bytes).map_err(|(problem, remedy)| Error::file(self.path, problem, remedy))
    }

    fn voxels(mut self, header: &Header) -> Result<Volume> {
        let fits = header.voxel_bytes().is_some_and(|n| header.offset.saturating_add(n) <= self.limit);
        if !fits {
            let problem = format!("claims {:?} voxels, more than the file can hold", header.dims);
            return Err(Error::file(self.path, problem, BROKEN));
        }
        self.skip_to(header.offset)?;
        let [nx, ny, nz] = header.dims;
        let mut data = vec![0.0; nx * ny * nz]; // untouched pages cost nothing until the file proves to be that long
        let mut slab = vec![0; nx * ny * nz.min(SLAB) * header.kind.bytes()];
        for z in (0..nz).step_by(SLAB) {
            let raw = &mut slab[..nx * ny * (nz - z).min(SLAB) * header.kind.bytes()];
            self.fill(raw)?;
            if header.big_endian {
                raw.par_chunks_exact_mut(header.kind.bytes()).with_min_len(1 << 16).for_each(<[u8]>::reverse);
            }
            store(raw, header, z, &mut data);
        }
        self.finish()?;
        Ok(Volume { data, dims: header.dims, affine: header.affine })
    }

    fn skip_to(&mut self, offset: u64) -> Result<()> {
        let skip = offset.saturating_sub(self.position);
        let skipped = std::io::copy(&mut (&mut self.reader).take(skip), &mut std::io::sink());
        match skipped {
            Ok(n) if n == skip => Ok(()),
            Ok(_) => Err(Error::file(self.path, "ends before its first voxel", BROKEN)),
            Err(e) => Err(Error::io(self.path, e, BROKEN)),
        }
    }

    /// Reads past the last voxel, so that the checksum of a gzip file is compared; gives up on long trailing data.
    fn finish(mut self) -> Result<()> {
        let tail = std::io::copy(&mut (&mut self.reader).take(1 << 20), &mut std::io::sink());
        tail.map(drop).map_err(|e| Error::io(self.path, e, BROKEN))
    }
}

/// Converts a slab of little-endian slices, from slice `z` on, into its place in `out`.
fn store(raw: &[u8], header: &Header, z: usize, out: &mut [f32]) {
    let place = Place { dims: header.dims, z, scale: header.scale };
    match header.kind {
        Kind::U8 => place.fill(raw, out, |[b]| b as f64),
        Kind::I8 => place.fill(raw, out, |b| i8::from_le_bytes(b) as f64),
        Kind::U16 => place.fill(raw, out, |b| u16::from_le_bytes(b) as f64),
        Kind::I16 => place.fill(raw, out, |b| i16::from_le_bytes(b) as f64),
        Kind::U32 => place.fill(raw, out, |b| u32::from_le_bytes(b) as f64),
        Kind::I32 => place.fill(raw, out, |b| i32::from_le_bytes(b) as f64),
        Kind::U64 => place.fill(raw, out, |b| u64::from_le_bytes(b) as f64),
        Kind::I64 => place.fill(raw, out, |b| i64::from_le_bytes(b) as f64),
        Kind::F32 => place.fill(raw, out, |b| f32::from_le_bytes(b) as f64),
        Kind::F64 => place.fill(raw, out, f64::from_le_bytes),
    }
}

struct Place {
    dims: [usize; 3],
    z: usize,
    scale: Option<(f64, f64)>,
}

impl Place {
    /// Goes tile by tile, so that every cache line of the slab is read once and every one of `out` written once.
    fn fill<const N: usize>(&self, raw: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f64 + Sync) {
        let [nx, ny, nz] = self.dims;
        let (slope, inter) = self.scale.unwrap_or((1.0, 0.0));
        let (voxels, _) = raw.as_chunks::<N>();
        let slices = voxels.len() / (nx * ny);
        out.par_chunks_mut(SLAB * ny * nz).enumerate().for_each(|(block, planes)| {
            let mut tile = [[0.0; SLAB]; SLAB]; // [x, z]
            for y in 0..ny {
                for z in 0..slices {
                    let row = &voxels[(z * ny + y) * nx..][..nx];
                    let columns = row[block * SLAB..].iter().zip(&mut tile);
                    columns.for_each(|(&b, column)| column[z] = (value(b) * slope + inter) as f32);
                }
                let lines = planes.chunks_mut(ny * nz).map(|plane| &mut plane[y * nz + self.z..][..slices]);
                lines.zip(&tile).for_each(|(line, column)| line.copy_from_slice(&column[..slices]));
            }
        });
    }
}
