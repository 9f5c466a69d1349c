//! `.nii.gz` out: NIfTI-1, little-endian, the affine as sform.

use crate::affine::{Affine, zooms};
use crate::error::{Error, Result};
use crate::volume::Volume;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Where the voxels begin: the header, and four bytes that say there are no extensions.
const OFFSET: usize = 352;

/// Writes HU as int16. Errors: an axis beyond NIfTI-1's 32767 voxels, or a disk that refuses.
pub fn write_image(path: &Path, volume: &Volume<i16>) -> Result<()> {
    write(path, volume, 4, |v| v.to_le_bytes())
}

/// Writes labels as uint8. Errors as [`write_image`].
pub fn write_label(path: &Path, volume: &Volume<u8>) -> Result<()> {
    write(path, volume, 2, |v| [v])
}

fn write<T: Copy, const N: usize>(path: &Path, volume: &Volume<T>, code: i16, bytes: fn(T) -> [u8; N]) -> Result<()> {
    if volume.dims.iter().any(|&n| n > i16::MAX as usize) {
        let problem = format!("{:?} voxels are too many for NIfTI-1", volume.dims);
        return Err(Error::file(path, problem, "write a smaller volume"));
    }
    let io = |e| Error::io(path, e, "check that the folder exists and has room");
    // a name that no dataset lists, until the volume is whole
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let file = File::create(&partial).map_err(io)?;
    stream(file, volume, code, bytes).and_then(|()| std::fs::rename(&partial, path)).map_err(|e| {
        // half a volume helps nobody, and nothing else can be done when it cannot be removed
        let _ = std::fs::remove_file(&partial);
        io(e)
    })
}

fn stream<T: Copy, const N: usize>(
    file: File,
    volume: &Volume<T>,
    code: i16,
    bytes: fn(T) -> [u8; N],
) -> std::io::Result<()> {
    let mut out = GzEncoder::new(BufWriter::new(file), Compression::fast());
    out.write_all(&header(volume.dims, &volume.affine, code, N))?;
    let [nx, ny, nz] = volume.dims;
    for z in 0..nz {
        let slice: Vec<u8> = (0..nx * ny).flat_map(|i| bytes(volume.data[(i % nx * ny + i / nx) * nz + z])).collect();
        out.write_all(&slice)?;
    }
    out.finish().and_then(|mut file| file.flush())
}

fn header(dims: [usize; 3], affine: &Affine, code: i16, bytes: usize) -> Vec<u8> {
    let mut h = vec![0; OFFSET];
    let mut put = |at: usize, field: &[u8]| h[at..at + field.len()].copy_from_slice(field);
    put(0, &348i32.to_le_bytes());
    let dim = [3, dims[0], dims[1], dims[2], 1, 1, 1, 1];
    (0..8).for_each(|i| put(40 + 2 * i, &(dim[i] as i16).to_le_bytes()));
    put(70, &code.to_le_bytes());
    put(72, &(8 * bytes as i16).to_le_bytes());
    let zoom = zooms(affine);
    let pixdim = [1.0, zoom[0], zoom[1], zoom[2], 1.0, 1.0, 1.0, 1.0];
    (0..8).for_each(|i| put(76 + 4 * i, &(pixdim[i] as f32).to_le_bytes()));
    put(108, &(OFFSET as f32).to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(123, &[2]); // millimetres
    put(254, &1i16.to_le_bytes()); // sform in scanner space
    (0..12).for_each(|i| put(280 + 4 * i, &(affine[i / 4][i % 4] as f32).to_le_bytes()));
    put(344, b"n+1\0");
    h
}
