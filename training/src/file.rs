//! Small files that are whole or not there.

use crate::{Error, Result};
use models::weights::PARTIAL;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Puts `contents` under the name `path`, in place of what was there; on an error that stays as it was.
pub fn replace(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let partial = partial(path);
    let written = std::fs::write(&partial, contents).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|error| {
        // Nothing else can be done about a temporary file that cannot be removed.
        let _ = std::fs::remove_file(&partial);
        Error::io(path)(error)
    })
}

/// Errors where [`replace`] would not be allowed to write.
pub fn try_replacing(path: &Path) -> Result<()> {
    let partial = partial(path);
    File::create(&partial).and_then(|_| std::fs::remove_file(&partial)).map_err(Error::io(path))
}

fn partial(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    partial.into()
}

/// Makes a folder one process's own until the lock is dropped; creates it. Where the file system knows no locks, it is nobody's.
///
/// [`Error::Locked`]: another process has it.
pub fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let opened = File::open(folder).map_err(Error::io(folder))?;
    match opened.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Locked { folder: folder.to_path_buf() }),
        _ => Ok(opened),
    }
}

/// Removes what a killed process left of files that it was writing into `folder`.
pub fn tidy(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_file() && path.to_string_lossy().ends_with(PARTIAL) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_run_at_a_time() {
        let folder = tempfile::tempdir().expect("folder");
        let run = folder.path().join("runs/first");
        let held = lock(&run).expect("free");
        assert!(lock(&run).expect_err("taken").to_string().contains("another run"));
        drop(held);
        drop(lock(&run).expect("free again"));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_remains_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.txt");
        replace(&path, "one").expect("written");
        replace(&path, "two").expect("written");
        std::fs::write(folder.path().join("b.txt.partial"), "hal").expect("written");
        tidy(folder.path()).expect("tidy");
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).expect("folder").map(|f| f.expect("file").file_name()).collect();
        assert_eq!((names, std::fs::read_to_string(&path).expect("file")), (vec!["a.txt".into()], "two".to_string()));
        let error = replace(&folder.path().join("no/such/file"), "").expect_err("no folder").to_string();
        assert!(error.contains("no/such/file"), "{error}");
    }
}
