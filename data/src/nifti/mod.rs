//! NIfTI-1 and NIfTI-2: `.nii`, `.nii.gz` and `.hdr`/`.img` pairs, either byte order, every real voxel type.
//!
//! Header rules are nibabel's: sform if its code is known, else qform, else voxel sizes with x mirrored and the origin in the
//! middle; `scl_slope` of 0 or NaN means unscaled. One is MONAI's: an sform whose voxel sizes are not the header's gives way to the
//! qform. NaN and infinite voxels are kept as they are.

mod header;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use read::Image;
pub use read::{files, read, read_label};
pub use write::{write_image, write_label};

use std::path::Path;

/// Whether the name is that of a NIfTI file: `.nii`, `.nii.gz`, `.hdr` or `.hdr.gz`. The `.img` of a pair goes with its `.hdr`, and
/// `._name` is what macOS notes beside a file on a foreign disk.
pub fn is_volume(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    !name.starts_with("._") && [".nii", ".nii.gz", ".hdr", ".hdr.gz"].iter().any(|end| name.ends_with(end))
}
