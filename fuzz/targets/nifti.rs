//! NIfTI files through the reader and the preprocessing chain. The first byte chooses how the rest lies on the disk.
#![no_main]

use data::preprocess::{self, Settings};
use data::{Region, nifti};
use flate2::{Compression, write::GzEncoder};
use fuzz::{FIXED, bounded, file, one_line, single_threaded};
use libfuzzer_sys::fuzz_target;
use std::io::Write;
use std::path::{Path, PathBuf};
use vocoe_fuzz as fuzz;

/// Deflate cannot compress better than this.
const MAX_RATIO: usize = 1032;
/// A voxel of one byte becomes a float, of which there are up to four copies where there are few slices, beside the byte itself.
const FLOATS: usize = 4 * 4 + 1;
/// Larger volumes are read, but not resampled: that is for speed alone.
const SMALL: usize = 512;
/// Resampling makes at most a thousand voxels of one, and holds three times as much beside the result where there are few slices.
const RESAMPLED: usize = 4 * 4 * 1000;
/// The recipe's chain for CT, with its padding left out.
const PAD: [usize; 3] = [1; 3];

fuzz_target!(init: single_threaded(), |input: &[u8]| {
    let Some((form, bytes)) = input.split_first() else { return };
    let (path, ratio) = store(form % 4, bytes);
    let limit = FIXED + FLOATS * ratio * bytes.len();
    let Some(volume) = bounded(limit, || one_line(nifti::read(&path), name(&path))) else { return };
    assert_eq!(volume.data.len(), volume.dims.iter().product::<usize>());
    let voxels = volume.data.len();
    drop(volume);
    if voxels <= SMALL {
        let region = [Region::Abdomen, Region::Chest][usize::from(form & 4 != 0)];
        let settings = Settings { pad: PAD, ..region.settings() };
        let label = (form & 8 != 0).then_some(path.as_path());
        bounded(FIXED + RESAMPLED * voxels, || one_line(preprocess::run(&path, label, &settings), name(&path)));
    }
});

/// As it is, zipped, as a pair, or zipped as a pair; and how much larger the contents may be than the file.
fn store(form: u8, bytes: &[u8]) -> (PathBuf, usize) {
    match form {
        0 => (file("x.nii", bytes), MAX_RATIO), // it may happen to be a gzip file
        1 => (file("x.nii.gz", &zipped(bytes)), MAX_RATIO),
        _ => {
            let header = if bytes.starts_with(&540i32.to_le_bytes()) { 540 } else { 348 };
            let (header, voxels) = bytes.split_at(header.min(bytes.len()));
            file("x.img", &if form == 2 { voxels.to_vec() } else { zipped(voxels) });
            (file("x.hdr", header), MAX_RATIO)
        }
    }
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::none());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

/// The part of the name that both files of a pair share.
fn name(path: &Path) -> &Path {
    path.parent().expect("a folder")
}
