//! All numbers of the report, computed from records.

mod duel;
mod machine;
mod speeds;
mod beside;

use std::path::Path;

use serde::Serialize;

use crate::coqa::Scoring;
use crate::error::Result;
use crate::experiment::CONTROL;
use crate::quant::Format;
use crate::quant::size::Parts;
use crate::record::{Record, Records};
use crate::verdict::judge::{Comparison, Row, groups, judge};
use crate::verdict::stats::Resampling;
use crate::verdict::study::{self, Study};

pub use beside::{Beside, Side};
pub use duel::{Changed, Contender, Duel};
pub use machine::{Checksum, Fact};
pub use speeds::{Benched, Held, Moment, Named, Run, Source, Speeds};

/// What a report says. Its JSON is what the keys of the report's tables point
/// into.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    pub groups: Vec<Group>,
    /// Speeds measured without questions.
    pub benches: Vec<Benched>,
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
    pub speeds: Speeds,
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
    /// Seconds of decode steps of a single sequence.
    #[serde(skip)]
    pub single_samples: Vec<f64>,
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
    let mut slugs: Vec<String> = Vec::new();
    for records in groups(&records.evaluations) {
        let mut group = group(&records, resampling)?;
        group.slug = free(group.slug, &mut slugs);
        found.push(group);
    }
    let mut benches = speeds::benched(&records.benches)?;
    for bench in &mut benches {
        bench.slug = free(std::mem::take(&mut bench.slug), &mut slugs);
    }
    let study = Study::published()?.judge()?;
    Ok(Findings {
        beside: beside::beside(&study, &found),
        groups: found,
        benches,
        study,
    })
}

/// `slug` if it is not among those taken, else with a number; taken then.
fn free(slug: String, taken: &mut Vec<String>) -> String {
    let numbered = (2..).map(|n| format!("{slug}-{n}"));
    let mut all = std::iter::once(slug.clone()).chain(numbered);
    let free = all.find(|slug| !taken.contains(slug));
    let free = free.expect("fewer slugs than numbers");
    taken.push(free.clone());
    free
}

fn group(records: &[&Record], resampling: Resampling) -> Result<Group> {
    let comparison = judge(records, resampling)?;
    let named = |name: &str| {
        let mut records = records.iter();
        let found = records.find(|r| r.head.setup.experiment == name);
        *found.expect("every row was made from a record of this group")
    };
    let entries: Vec<Entry> = comparison
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
    let heads = records.iter().map(|r| {
        let setup = &r.head.setup;
        (&r.head.environment, setup.compute, &setup.program)
    });
    let mut files = machine::checksums(&comparison.model);
    files.push(Checksum {
        file: comparison.dataset.name.clone(),
        sha256: comparison.dataset.sha256.clone(),
    });
    Ok(Group {
        slug: slug(&comparison),
        title: title(&comparison),
        speeds: Speeds::of_entries(&entries),
        entries,
        duel,
        machine: machine::machine(heads),
        files,
        comparison,
    })
}

/// What the name of the control's row ends with.
pub(super) const AGAIN: &str = ", again";

fn entry(record: &Record, row: &Row) -> Entry {
    Entry {
        name: if row.experiment == CONTROL {
            format!("{}{AGAIN}", row.format)
        } else {
            row.format.label(row.compute)
        },
        row: row.clone(),
        parts: record.head.parts,
        single_samples: speeds::single(record.samples.speed.as_ref()),
        record: file_name_of(&Record::path(Path::new(""), &record.head.setup)),
        started: record.head.environment.started.clone(),
    }
}

/// Name of the file that a record is in, from its path in no folder.
fn file_name_of(path: &Path) -> String {
    path.display().to_string()
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
    words(&format!("{} {dataset} {marks}", comparison.model.name))
}

/// The letters and digits of `text`, words joined by single hyphens.
fn words(text: &str) -> String {
    let all = text.to_lowercase();
    let words = all.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").chars().take(60).collect()
}
