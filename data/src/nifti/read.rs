//! Voxels in: the file is streamed slice by slice and converted to f32.

use super::header::{Header, Kind, SIZES, is_version2};
use crate::affine::{Affine, Axis};
use crate::error::{Error, Result};
use crate::slices::{self, Slices};
use crate::volume::Volume;
use flate2::bufread::GzDecoder;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Deflate cannot compress better than this.
const MAX_RATIO: u64 = 1032;
const BROKEN: &str = "the file is cut short or damaged: copy or download it again";

/// Reads an image in its stored unit (HU for CT) as f32, in the file's own orientation. For a pair, name the `.hdr` or `.img`.
///
/// Errors: unreadable, truncated or damaged files; more than one volume; RGB or complex voxels.
pub fn read(path: &Path) -> Result<Volume> {
    slices::whole(&mut Image::open(path)?, [0, 1, 2].map(|from| Axis { from, flip: false }))
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
    let image = sibling(&header, ".hdr", ".img");
    if image == header || !image.exists() { vec![header] } else { vec![header, image] }
}

/// The other file of a pair, `x.img` ↔ `x.hdr`: the one that is there, whichever of the two is compressed or in capitals.
fn sibling(path: &Path, from: &str, to: &str) -> PathBuf {
    let name = path.to_string_lossy();
    let (stem, gz) = without_suffix(&name, ".gz").map_or((&*name, ""), |stem| (stem, &name[stem.len()..]));
    let Some(stem) = without_suffix(stem, from) else { return path.to_owned() };
    let endings = [gz, "", ".gz", ".GZ"];
    let names = endings.iter().flat_map(|gz| [format!("{stem}{to}{gz}"), format!("{stem}{}{gz}", to.to_uppercase())]);
    let there = names.map(PathBuf::from).find(|name| name.exists());
    there.unwrap_or_else(|| PathBuf::from(format!("{stem}{to}{gz}")))
}

/// A name without its ending, in whichever case that is.
fn without_suffix<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let (stem, end) = name.split_at_checked(name.len().checked_sub(suffix.len())?)?;
    end.eq_ignore_ascii_case(suffix).then_some(stem)
}

/// The voxels of an image, in its stored unit.
pub(crate) struct Image {
    header: Header,
    stream: Stream,
    /// One slice as the file has it.
    raw: Vec<u8>,
    next: usize,
}

impl Image {
    /// Errors as [`read`], but for those of damaged voxels.
    pub(crate) fn open(path: &Path) -> Result<Image> {
        let header_path = sibling(path, ".img", ".hdr");
        let mut stream = Stream::open(&header_path)?;
        let header = stream.header()?;
        if !header.single_file {
            stream = Stream::open(&sibling(&header_path, ".hdr", ".img"))?;
        }
        stream.check(&header)?;
        stream.skip_to(header.offset)?;
        let raw = vec![0; header.dims[0] * header.dims[1] * header.kind.bytes()];
        Ok(Image { header, stream, raw, next: 0 })
    }
}

impl Slices for Image {
    fn dims(&self) -> [usize; 3] {
        self.header.dims
    }

    fn affine(&self) -> Affine {
        self.header.affine
    }

    fn order(&self) -> [usize; 3] {
        [2, 1, 0]
    }

    fn next(&mut self, slice: &mut [f32]) -> Result<()> {
        self.stream.fill(&mut self.raw)?;
        if self.header.big_endian {
            self.raw.chunks_exact_mut(self.header.kind.bytes()).for_each(<[u8]>::reverse);
        }
        convert(&self.raw, &self.header, slice);
        self.next += 1;
        Ok(())
    }

    /// Reads past the last voxel, so that the checksum of a gzip file is compared.
    fn finish(&mut self) -> Result<()> {
        (self.next..self.header.dims[2]).try_for_each(|_| self.stream.fill(&mut self.raw))?;
        self.stream.finish()
    }
}

/// A file being read, unzipped where its first bytes say so, and how many bytes it can yield at most.
struct Stream {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    limit: u64,
    position: u64,
}

impl Stream {
    fn open(path: &Path) -> Result<Stream> {
        let io = |e| Error::io(path, e, "check the path and its permissions");
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let zipped = reader.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
        let (reader, limit): (Box<dyn Read + Send>, u64) = match zipped {
            true => (Box::new(Members::Between(reader)), length.saturating_mul(MAX_RATIO)),
            false => (Box::new(reader), length),
        };
        Ok(Stream { path: path.to_owned(), reader, limit, position: 0 })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.position += bytes.len() as u64;
        self.reader.read_exact(bytes).map_err(|e| Error::io(&self.path, e, BROKEN))
    }

    fn header(&mut self) -> Result<Header> {
        let mut bytes = vec![0; SIZES[0]];
        self.fill(&mut bytes)?;
        if is_version2(&bytes) {
            bytes.resize(SIZES[1], 0);
            self.fill(&mut bytes[SIZES[0]..])?;
        }
        Header::parse(&bytes).map_err(|(problem, remedy)| Error::file(&self.path, problem, remedy))
    }

    /// Errors: more voxels than the file can hold.
    fn check(&self, header: &Header) -> Result<()> {
        let fits = header.voxel_bytes().is_some_and(|n| header.offset.saturating_add(n) <= self.limit);
        if !fits {
            let problem = format!("claims {:?} voxels, more than the file can hold", header.dims);
            return Err(Error::file(&self.path, problem, BROKEN));
        }
        Ok(())
    }

    fn skip_to(&mut self, offset: u64) -> Result<()> {
        let skip = offset.saturating_sub(self.position);
        let skipped = std::io::copy(&mut (&mut self.reader).take(skip), &mut std::io::sink());
        match skipped {
            Ok(n) if n == skip => Ok(()),
            Ok(_) => Err(Error::file(&self.path, "ends before its first voxel", BROKEN)),
            Err(e) => Err(Error::io(&self.path, e, BROKEN)),
        }
    }

    /// Reads to the end; gives up on long trailing data.
    fn finish(&mut self) -> Result<()> {
        let tail = std::io::copy(&mut (&mut self.reader).take(1 << 20), &mut std::io::sink());
        tail.map(drop).map_err(|e| Error::io(&self.path, e, BROKEN))
    }
}

/// A gzip file, member after member. What follows the last one and does not begin like another is left alone, such as zeros up to a
/// whole block.
enum Members {
    Member(Box<GzDecoder<BufReader<File>>>),
    Between(BufReader<File>),
    End,
}

impl Read for Members {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            *self = match std::mem::replace(self, Members::End) {
                Members::Member(mut member) => {
                    let read = member.read(bytes);
                    if bytes.is_empty() || !matches!(read, Ok(0)) {
                        *self = Members::Member(member);
                        return read;
                    }
                    Members::Between(member.into_inner())
                }
                Members::Between(mut file) => match file.fill_buf()?.first() {
                    Some(0x1f) => Members::Member(Box::new(GzDecoder::new(file))),
                    _ => return Ok(0),
                },
                Members::End => return Ok(0),
            };
        }
    }
}

/// Little-endian voxels as the header says.
fn convert(raw: &[u8], header: &Header, out: &mut [f32]) {
    let scale = header.scale;
    match header.kind {
        Kind::U8 => scaled(raw, scale, out, |[b]| b as f64),
        Kind::I8 => scaled(raw, scale, out, |b| i8::from_le_bytes(b) as f64),
        Kind::U16 => scaled(raw, scale, out, |b| u16::from_le_bytes(b) as f64),
        Kind::I16 => scaled(raw, scale, out, |b| i16::from_le_bytes(b) as f64),
        Kind::U32 => scaled(raw, scale, out, |b| u32::from_le_bytes(b) as f64),
        Kind::I32 => scaled(raw, scale, out, |b| i32::from_le_bytes(b) as f64),
        Kind::U64 => scaled(raw, scale, out, |b| u64::from_le_bytes(b) as f64),
        Kind::I64 => scaled(raw, scale, out, |b| i64::from_le_bytes(b) as f64),
        Kind::F32 => scaled(raw, scale, out, |b| f32::from_le_bytes(b) as f64),
        Kind::F64 => scaled(raw, scale, out, f64::from_le_bytes),
    }
}

fn scaled<const N: usize>(raw: &[u8], scale: Option<(f64, f64)>, out: &mut [f32], value: impl Fn([u8; N]) -> f64) {
    let (voxels, _) = raw.as_chunks::<N>();
    let voxels = out.iter_mut().zip(voxels);
    match scale {
        None => voxels.for_each(|(v, &b)| *v = value(b) as f32),
        Some((slope, inter)) => voxels.for_each(|(v, &b)| *v = (value(b) * slope + inter) as f32),
    }
}
