//! One process writes a record at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The right to write a record; it ends with this value, or with the process.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock that lies beside the place of `record`.
    ///
    /// # Errors
    /// If another process holds it.
    pub fn hold(record: &Path) -> Result<Self> {
        let path = record.with_extension("lock");
        loop {
            let file = File::options().create(true).append(true).open(&path);
            let file = file.map_err(|e| Error::io("make the lock", &path, e))?;
            match file.try_lock() {
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::record(
                        record.display().to_string(),
                        "no other process that writes it",
                        format!("one that holds {}", path.display()),
                        "wait until it ends, or give this run another folder with --out",
                    ));
                }
                Err(TryLockError::Error(e)) => {
                    tracing::warn!("{}: cannot be locked ({e})", path.display());
                }
            }
            return Ok(Self { path, _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still held, so nobody else relies on the file that goes.
        drop(fs::remove_file(&self.path));
    }
}

/// Whether the file is still the one at `path`: its last holder removes it.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |m: fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(there)) => place(file) == place(there),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
