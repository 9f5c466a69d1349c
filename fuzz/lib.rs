//! What every target demands of a reader, beside not panicking: bounded memory, and errors of one line.

use engine::memory;
use peak_alloc::PeakAlloc;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that any reader may take, however small its file: buffers, and what a parser sets up.
pub const FIXED: usize = 4 << 20;

/// Runs `read`, which may hold `limit` bytes at a time.
pub fn bounded<T>(limit: usize, read: impl FnOnce() -> T) -> T {
    // tensors have memory of their own
    let (before, tensors) = (MEMORY.current_usage(), memory::usage().live);
    MEMORY.reset_peak_usage();
    memory::reset_peak();
    let result = read();
    let taken = MEMORY.peak_usage().saturating_sub(before) + memory::usage().peak.saturating_sub(tensors);
    assert!(taken <= limit, "took {taken} bytes, more than {limit}");
    result
}

/// The value; or nothing, after an error that must be one line and name `file`.
pub fn one_line<T, E: Display>(result: Result<T, E>, file: &Path) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error.to_string(),
    };
    assert!(error.lines().count() == 1, "not one line: {error:?}");
    assert!(error.contains(&*file.to_string_lossy()), "does not name {}: {error:?}", file.display());
    None
}

/// A file of these bytes in a folder of this process, in memory where the system has such a place.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("scratch file");
    path
}

pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let folder = root.join(format!("vocoe-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("scratch folder");
        folder
    })
}

/// Kernels and readers then run on the fuzzer's own thread, without waiting for another.
pub fn single_threaded() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("no pool was built before");
}

/// An archive of uncompressed records.
pub fn zip(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, data) in records {
        let (mut entry, config) = writer.new_file(*name).start().expect("entry");
        let mut out = config.wrap(&mut entry);
        out.write_all(data).expect("data");
        let (_, descriptor) = out.finish().expect("data");
        entry.finish(descriptor).expect("entry");
    }
    writer.finish().expect("archive")
}
