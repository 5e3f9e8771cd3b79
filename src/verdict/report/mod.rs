//! The report: every table, picture and sentence, from records alone.
//!
//! In reading order:
//!
//! - `findings`: all numbers of the report, computed from records by
//!   [`super::judge`] and [`super::study`]
//! - `table`: tables whose columns name the finding they show, so that no cell
//!   can hold a number that is not a finding
//! - `group`, `speed`, `original`: the sections about one comparison, about the
//!   speed of its runs or of benches, and about the original study
//! - `charts`: which findings go into which picture
//! - `escape`: text of a model is untrusted and shows as text in every output
//! - `page`: sections into Markdown, HTML, CSV and LaTeX
//! - `folder`: the files on disk, written whole or not at all, and their check

pub mod findings;
pub mod table;
mod charts;
mod group;
mod speed;
mod original;
pub mod escape;
pub mod page;
pub mod folder;

use std::path::Path;

use super::stats::Resampling;
use crate::error::{Error, Result};
use crate::record::Records;

pub use findings::{Findings, findings};
pub use folder::{File, check, write};

/// The finished records below `dir`.
///
/// # Errors
/// If there are none, or one cannot be read.
pub fn open(dir: &Path) -> Result<Records> {
    let records = if dir.is_dir() {
        Records::open(dir)?
    } else {
        Records::default()
    };
    if records.is_empty() {
        return Err(Error::report(
            dir.display().to_string(),
            "at least one finished record (a .json file)",
            "none",
            "run `llama-quant compare` first, or name the folder of its records",
        ));
    }
    Ok(records)
}

/// Every file of the report on `records`, in memory: the same bytes for the
/// same records, whatever the machine and the day.
///
/// # Errors
/// If records of one comparison do not belong together.
pub fn files(records: &Records) -> Result<Vec<File>> {
    let findings = findings(records, Resampling::default())?;
    page::files(&findings)
}
