//! The project's own build steps: the kernels' images, and the emulator that runs the same kernels on the CPU.

pub mod emulator;
pub mod images;
pub mod process;
pub mod sources;
pub mod toolchain;

use std::path::{Path, PathBuf};

/// What went wrong, in one line (or the compiler's own lines).
pub type Result<T> = std::result::Result<T, String>;

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a crate of the workspace stands below its root")
        .to_path_buf()
}
