//! A wish to stop: the item that runs is finished and written first.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static WANTED: AtomicBool = AtomicBool::new(false);

/// Asks the run to stop after the item that it is at; true if it was asked
/// before.
pub fn interrupt() -> bool {
    WANTED.swap(true, Ordering::Relaxed)
}

/// Ends a run that writes to `folder` if it was asked to stop.
pub fn check(folder: &Path) -> Result<()> {
    if WANTED.load(Ordering::Relaxed) {
        return Err(Error::Interrupted {
            folder: folder.to_path_buf(),
        });
    }
    Ok(())
}
