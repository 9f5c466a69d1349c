//! Keeping a cache within its size, and clear of what killed writers left. Files of other names are the user's, and are left alone.

use super::folder::{is_entry, is_temporary, temporary};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use walkdir::WalkDir;

/// Writing an entry takes seconds; what is older than this was left behind.
const ABANDONED: Duration = Duration::from_secs(3600);
/// How exactly the time of an entry's last use is kept.
const RECENT: Duration = Duration::from_secs(60);

/// The size that a cache may have. Other writers' entries are counted whenever it is looked through again, after each sixteenth
/// of it that this one writes: until then several writers together may go beyond it by as much each.
pub(super) struct Budget {
    folder: PathBuf,
    most: u64,
    /// Bytes when it was last looked through, and written since.
    known: Mutex<(u64, u64)>,
}

impl Budget {
    pub(super) fn new(folder: &Path, most: u64) -> Budget {
        let total = entries(folder).iter().map(|e| e.bytes).sum();
        Budget { folder: folder.to_owned(), most, known: Mutex::new((total, 0)) }
    }

    /// Counts the entry `new`, and removes others where they are too many. Nothing has to make way for an entry that itself had to,
    /// before its turn came.
    pub(super) fn grow(&self, new: &Path) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = size(new);
        if bytes == 0 {
            return;
        }
        known.1 += bytes;
        let (total, since) = *known;
        if total + since > self.most || since > self.most / 16 {
            *known = (shrink(&self.folder, self.most, new), 0);
        }
    }
}

struct Stored {
    path: PathBuf,
    used: SystemTime,
    bytes: u64,
}

/// Where there is more than may be, removes the entries that were not used for the longest time, but not `keep`; returns what is
/// left. A sixteenth is made free, as far as whole entries do not take more, so that not every entry after it comes here again.
fn shrink(folder: &Path, most: u64, keep: &Path) -> u64 {
    let mut all = entries(folder);
    all.sort_by_key(|e| e.used);
    let mut total: u64 = all.iter().map(|e| e.bytes).sum();
    if total <= most {
        return total;
    }
    for entry in all.iter().filter(|e| e.path != keep) {
        if total <= most && total - entry.bytes < most - most / 16 {
            break;
        }
        if remove(&entry.path) {
            total -= entry.bytes;
        }
    }
    total
}

fn entries(folder: &Path) -> Vec<Stored> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = found.flatten().map(|e| e.path()).filter(|p| is_entry(p));
    let stored = |path: PathBuf| {
        let used = path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Stored { used, bytes: size(&path), path }
    };
    paths.map(stored).collect()
}

/// Bytes of the files below `path`.
pub(super) fn size(path: &Path) -> u64 {
    WalkDir::new(path).into_iter().flatten().flat_map(|e| e.metadata()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// Notes that an entry was used just now.
pub(super) fn mark_used(entry: &Path) {
    let old = |used: SystemTime| used.elapsed().is_ok_and(|age| age > RECENT);
    if entry.metadata().and_then(|m| m.modified()).is_ok_and(old) {
        // an entry that cannot be marked is merely evicted sooner
        let _ = File::open(entry).and_then(|folder| folder.set_modified(SystemTime::now()));
    }
}

/// Takes an entry away at once under its name, then its files, and says whether that was possible. Who reads it goes on reading.
pub(super) fn remove(entry: &Path) -> bool {
    let aside = temporary(entry);
    let renamed = std::fs::rename(entry, &aside).is_ok();
    if renamed {
        // best effort: the next to open the cache removes what stays
        let _ = std::fs::remove_dir_all(&aside);
    }
    renamed
}

/// Removes what was being written or removed an hour ago or more.
pub(super) fn remove_leftovers(folder: &Path) {
    let Ok(found) = std::fs::read_dir(folder) else { return };
    for path in found.flatten().map(|e| e.path()).filter(|p| is_temporary(p)) {
        let old =
            path.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age > ABANDONED));
        if old {
            // best effort: it is in nobody's way but for its size
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
    }
}
