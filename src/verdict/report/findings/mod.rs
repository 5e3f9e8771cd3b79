//! All numbers of the report, computed from records.

mod duel;
mod machine;
mod beside;

use std::path::Path;

use serde::Serialize;

use crate::coqa::Scoring;
use crate::error::Result;
use crate::experiment::CONTROL;
use crate::quant::Format;
use crate::quant::size::Parts;
use crate::record::{self, Record, Records, Setup};
use crate::verdict::judge::{Comparison, Row, groups, judge};
use crate::verdict::stats::{Median, Resampling};
use crate::verdict::study::{self, Study};

pub use beside::{Beside, Side};
pub use duel::{Changed, Contender, Duel};
pub use machine::{Checksum, Fact};

/// What a report says. Its JSON is what the keys of the report's tables point
/// into.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    pub groups: Vec<Group>,
    pub study: study::Judged,
    /// Formats that both the study and a group have.
    pub beside: Vec<Beside>,
}

/// One comparison: runs on one model, data set and task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// Names its files: letters, digits and hyphens.
    pub slug: String,
    pub title: String,
    pub comparison: Comparison,
    /// One a run, in the order of `comparison.rows`.
    pub entries: Vec<Entry>,
    pub duel: Option<Duel>,
    pub machine: Vec<Fact>,
    pub files: Vec<Checksum>,
}

/// One run, with what the comparison does not say of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The format, as printed.
    pub name: String,
    #[serde(flatten)]
    pub row: Row,
    pub parts: Parts,
    /// Seconds of a decode step at batch 1.
    pub decode: Option<Median>,
    /// The measurements behind it.
    #[serde(skip)]
    pub decode_samples: Vec<f64>,
    /// The record's file.
    pub record: String,
    pub started: String,
}

/// Everything the report says about `records`.
///
/// # Errors
/// If records of one comparison do not belong together.
pub fn findings(records: &Records, resampling: Resampling) -> Result<Findings> {
    let mut found: Vec<Group> = Vec::new();
    for records in groups(&records.evaluations) {
        let mut group = group(&records, resampling)?;
        let taken = |slug: &str| found.iter().any(|g| g.slug == slug);
        if taken(&group.slug) {
            let numbered = |n| format!("{}-{n}", group.slug);
            let free = (2..).map(numbered).find(|slug| !taken(slug));
            group.slug = free.expect("fewer groups than numbers");
        }
        found.push(group);
    }
    let study = Study::published()?.judge()?;
    Ok(Findings {
        beside: beside::beside(&study, &found),
        groups: found,
        study,
    })
}

fn group(records: &[&Record], resampling: Resampling) -> Result<Group> {
    let comparison = judge(records, resampling)?;
    let named = |name: &str| {
        let mut records = records.iter();
        let found = records.find(|r| r.head.setup.experiment == name);
        *found.expect("every row was made from a record of this group")
    };
    let entries = comparison
        .rows
        .iter()
        .map(|row| entry(named(&row.experiment), row))
        .collect();
    let with = |format: Format| {
        let row = comparison.rows.iter().find(|r| r.format == format)?;
        Some(named(&row.experiment))
    };
    let duel = duel::duellists(&comparison.rows)
        .and_then(|[a, b]| Some((with(a)?, with(b)?)))
        .map(|(a, b)| duel::duel(a, b, resampling))
        .transpose()?;
    Ok(Group {
        slug: slug(&comparison),
        title: title(&comparison),
        entries,
        duel,
        machine: machine::machine(records),
        files: machine::checksums(&comparison),
        comparison,
    })
}

fn entry(record: &Record, row: &Row) -> Entry {
    let single = row.speed.as_ref().and_then(|s| s.single.as_ref());
    let samples = record.samples.speed.as_ref();
    let of_one = |d: &&record::Decode| d.sequences == 1;
    let samples = samples.and_then(|s| s.decode.iter().find(of_one));
    Entry {
        name: if row.experiment == CONTROL {
            format!("{}, again", row.format)
        } else {
            row.format.to_string()
        },
        row: row.clone(),
        parts: record.head.parts,
        decode: single.map(|d| d.seconds.median),
        decode_samples: samples.map_or_else(Vec::new, |d| d.seconds.clone()),
        record: file_name(&record.head.setup),
        started: record.head.environment.started.clone(),
    }
}

/// Name of the file that a record with this setup is in.
fn file_name(setup: &Setup) -> String {
    Record::path(Path::new(""), setup).display().to_string()
}

/// What tells this comparison from others, as words.
fn marks(comparison: &Comparison) -> Vec<String> {
    let task = &comparison.task;
    let mut marks = vec![format!("{} turns", task.turns), comparison.engine.clone()];
    marks.extend(task.limit.map(|limit| format!("first {limit} stories")));
    if task.scoring != Scoring::LmEval {
        marks.push(format!("scoring {}", task.scoring));
    }
    if !task.bos {
        marks.push("no BOS".to_owned());
    }
    marks
}

fn title(comparison: &Comparison) -> String {
    let Comparison { model, dataset, .. } = comparison;
    let marks = marks(comparison).join(", ");
    format!("{} on {}, {marks}", model.name, dataset.name)
}

/// A name for files: letters, digits and single hyphens, whatever the folders
/// were called.
fn slug(comparison: &Comparison) -> String {
    let dataset = &comparison.dataset.name;
    let dataset = dataset
        .split_once('.')
        .map_or(dataset.as_str(), |(stem, _)| stem);
    let marks = marks(comparison).join(" ");
    let all = format!("{} {dataset} {marks}", comparison.model.name).to_lowercase();
    let words = all.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").chars().take(60).collect()
}
