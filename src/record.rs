//! The record: all that passes from measuring to judging. One JSON file for
//! each experiment and set of options, written item by item so that a run that
//! is killed goes on where it stopped; and one for each measurement of speed
//! alone.

mod bench;
mod speed;

mod lock;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::lock::Lock;
use crate::coqa::{Scoring, Turns};
use crate::error::{Error, Result};
use crate::quant::size::Parts;
use crate::quant::{Bytes, Compute, Format};
use crate::source::hex;

pub use crate::source::origin::Weights;

pub use bench::{Bench, BenchHead, BenchSetup};
pub use speed::{
    AllTurns, CardState, Decode, Documents, Energy, Gpu, Memory, Plan, Prefill, Speed,
};

/// Version of the layout. A record of another version is refused.
pub const SCHEMA: u32 = 2;

/// Everything that can change a result, and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    pub experiment: String,
    pub format: Format,
    /// What weights are rounded to before they are multiplied.
    pub compute: Compute,
    pub model: Model,
    pub dataset: Dataset,
    pub task: Task,
    /// What ran the model: `cpu` or `cuda`.
    pub engine: String,
    /// Sequences run together.
    pub slots: usize,
    /// SHA-256 of the program that ran.
    pub program: String,
}

/// Which checkpoint was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name of the folder, or the id on the hub.
    pub name: String,
    /// Commit on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// SHA-256 of each file read, by name.
    pub files: BTreeMap<String, String>,
}

/// Which questions were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// Name of the file, or the id on the hub.
    pub name: String,
    /// Commit on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    pub sha256: String,
}

/// How they were asked and scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub turns: Turns,
    /// Only the first so many stories.
    pub limit: Option<usize>,
    pub scoring: Scoring,
    /// Whether prompts start with the beginning-of-text token.
    pub bos: bool,
    pub max_new_tokens: usize,
    pub stop: Vec<String>,
    /// Whether generation also ends after the first line.
    pub first_line: bool,
}

/// Where and when the run took place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// What ran the model, such as `cpu` or `cuda:0`.
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub os: String,
    pub crate_version: String,
    /// Revision of the source, none outside a git checkout.
    pub git_revision: Option<String>,
    /// No uncommitted change outside `reports/`.
    pub git_clean: Option<bool>,
    /// Start of the run, UTC, RFC 3339.
    pub started: String,
}

/// What a file of records holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A [`Record`]: questions, asked and scored.
    Evaluation,
    /// A [`Bench`]: speed alone.
    Bench,
}

/// What is known before the first item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub schema: u32,
    /// [`Kind::Evaluation`].
    pub kind: Kind,
    /// SHA-256 of `setup`: two runs with one key give the same items.
    pub key: String,
    pub setup: Setup,
    pub environment: Environment,
    /// Bytes of the weights held, counted both ways.
    pub size: Bytes,
    /// The same bytes, part by part.
    pub parts: Parts,
    pub constant: Constant,
}

/// The best that a program could do without reading the questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    pub answer: String,
    /// Its mean over the items.
    pub f1: f64,
}

/// One question and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Place among the items of the run.
    pub index: usize,
    /// `story#turn`.
    pub id: String,
    /// The story's id: the unit of resampling.
    pub story: String,
    pub question: String,
    pub references: Vec<String>,
    pub prompt_tokens: usize,
    /// Generated token ids.
    pub tokens: Vec<u32>,
    pub finish: Finish,
    pub prediction: String,
    /// 0..1, under the task's scoring rule.
    pub em: f64,
    /// 0..1, under the task's scoring rule.
    pub f1: f64,
    /// Whether the prediction equals any reference: EM with only two values.
    pub em_any: bool,
    /// F1 of the best reference under the same rule.
    pub ceiling_f1: f64,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    Eos,
    Stop,
    Line,
    Length,
}

/// One story with its gold answers, read token by token by the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forced {
    /// Place among the stories of the run.
    pub index: usize,
    pub story: String,
    /// Tokens predicted: all but the first.
    pub tokens: usize,
    /// Sum of the negative log-likelihoods of the tokens, in nats.
    pub nll: f64,
    /// Tokens at which the likeliest one is also the baseline's.
    pub same_top: usize,
    /// First 16 hexadecimal digits of the SHA-256 of all logits of the story, as
    /// little-endian f32: runs that agree here agree to the bit.
    pub logits_sha256: String,
    /// KL divergence from the baseline's distribution, in nats, one a token, to
    /// five significant digits. Empty for the baseline itself.
    pub kl: Vec<f64>,
}

/// Raw measurements of time; nothing that is the same in the next run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    pub load_seconds: f64,
    /// All items that this run did not find already written.
    pub evaluate_seconds: f64,
    /// None if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub head: Head,
    /// By rising index, complete.
    pub items: Vec<Item>,
    /// One a story of the items, by rising index.
    pub forced: Vec<Forced>,
    pub samples: Samples,
}

/// SHA-256 of `bytes`, in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Writes a file whole or not at all: beside its place and renamed, so that a
/// reader sees the old file or the new one. Its folder is made if need be.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(|e| Error::io("make the folder", dir, e))?;
    let io = |e| Error::io("write", path, e);
    // Created by hand: a temporary file by default cannot be read by others.
    let mut file = tempfile::Builder::new()
        .make_in(dir, |path| File::create_new(path))
        .map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

impl Setup {
    /// SHA-256 of everything in here.
    pub fn key(&self) -> String {
        let json = serde_json::to_vec(self).expect("a setup has string keys and finite numbers");
        digest(&json)
    }
}

impl Record {
    /// Where the record of `setup` lies in `dir`.
    pub fn path(dir: &Path, setup: &Setup) -> PathBuf {
        dir.join(format!("{}-{}.json", setup.experiment, &setup.key()[..8]))
    }

    /// Reads a finished record.
    ///
    /// # Errors
    /// If the file is damaged, incomplete or of another schema version.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        kind(path, &text)?.expect(path, Kind::Evaluation)?;
        Self::read(path, &text)
    }

    fn read(path: &Path, text: &str) -> Result<Self> {
        let record: Self = serde_json::from_str(text).map_err(|e| damaged(path, &e))?;
        let complete = record
            .items
            .iter()
            .enumerate()
            .all(|(i, item)| item.index == i);
        if !complete || record.head.key != record.head.setup.key() {
            let wanted = "items 0, 1, 2 … and a key that belongs to the setup";
            return Err(edited(path, wanted));
        }
        Ok(record)
    }

    /// Writes the record whole or not at all, a line for each item.
    fn write(&self, path: &Path) -> Result<()> {
        let head = serde_json::to_string_pretty(&self.head).map_err(|e| unwritable(path, &e))?;
        let items = lines(path, &self.items)?;
        let forced = lines(path, &self.forced)?;
        let samples = line(path, &self.samples)?;
        let text = format!(
            "{{\"head\": {head},\n\"items\": [{items}],\n\"forced\": [{forced}],\n\"samples\": {samples}}}\n"
        );
        replace(path, text.as_bytes())
    }
}

/// All that lies in a folder of records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    pub evaluations: Vec<Record>,
    pub benches: Vec<Bench>,
}

impl Records {
    /// Every finished record below `dir`, each kind by path.
    ///
    /// # Errors
    /// If one cannot be read; see [`Record::open`] and [`Bench::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        let mut folders = vec![dir.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|e| Error::io("list", &folder, e))? {
                let path = entry.map_err(|e| Error::io("list", &folder, e))?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "json") {
                    paths.push(path);
                }
            }
        }
        paths.sort();
        let mut records = Self::default();
        for path in &paths {
            let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            match kind(path, &text)? {
                Kind::Evaluation => records.evaluations.push(Record::read(path, &text)?),
                Kind::Bench => records.benches.push(Bench::read(path, &text)?),
            }
        }
        Ok(records)
    }

    pub fn len(&self) -> usize {
        self.evaluations.len() + self.benches.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A record being written: the head and one line for each finished item, in a
/// file beside the place of the finished record.
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    contents: Contents,
    _lock: Lock,
}

/// What an unfinished record holds.
struct Contents {
    head: Head,
    items: BTreeMap<usize, Item>,
    forced: BTreeMap<usize, Forced>,
}

/// A line of an unfinished record after its head.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Item(Item),
    Forced(Forced),
}

impl Writer {
    /// Starts a record in `dir`, or goes on with the one that a run with the
    /// same key left unfinished there; its items need not be run again.
    ///
    /// # Errors
    /// If another process writes it, or the folder cannot be written.
    pub fn begin(dir: &Path, head: Head) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io("make the folder", dir, e))?;
        let path = Record::path(dir, &head.setup);
        let lock = Lock::hold(&path)?;
        let partial = path.with_extension("partial");
        let found = if partial.exists() {
            read_partial(&partial)?
        } else {
            None
        };
        let contents = found
            .filter(|found| found.head.key == head.key)
            .unwrap_or(Contents {
                head,
                items: BTreeMap::new(),
                forced: BTreeMap::new(),
            });
        let io = |e| Error::io("write the unfinished record", &partial, e);
        // Written anew, so that half a line at the end of the old file is gone.
        let mut text = line(&partial, &contents.head)? + "\n";
        for forced in contents.forced.values() {
            text.push_str(&(line(&partial, &Line::Forced(forced.clone()))? + "\n"));
        }
        for item in contents.items.values() {
            text.push_str(&(line(&partial, &Line::Item(item.clone()))? + "\n"));
        }
        replace(&partial, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&partial).map_err(io)?;
        Ok(Self {
            path,
            partial,
            file,
            contents,
            _lock: lock,
        })
    }

    /// Whether the item at `index` is already written.
    pub fn has(&self, index: usize) -> bool {
        self.contents.items.contains_key(&index)
    }

    /// Whether the reading of the story at `index` is already written.
    pub fn has_forced(&self, index: usize) -> bool {
        self.contents.forced.contains_key(&index)
    }

    /// Adds a finished item.
    pub fn add(&mut self, item: Item) -> Result<()> {
        self.append(&Line::Item(item.clone()))?;
        self.contents.items.insert(item.index, item);
        Ok(())
    }

    /// Adds the reading of a story.
    pub fn add_forced(&mut self, forced: Forced) -> Result<()> {
        self.append(&Line::Forced(forced.clone()))?;
        self.contents.forced.insert(forced.index, forced);
        Ok(())
    }

    fn append(&mut self, value: &Line) -> Result<()> {
        let text = line(&self.partial, value)? + "\n";
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|e| Error::io("write the unfinished record", &self.partial, e))
    }

    /// Turns the unfinished record into a finished one.
    pub fn finish(self, samples: Samples) -> Result<(PathBuf, Record)> {
        let Contents {
            head,
            items,
            forced,
        } = self.contents;
        let record = Record {
            head,
            items: items.into_values().collect(),
            forced: forced.into_values().collect(),
            samples,
        };
        record.write(&self.path)?;
        match fs::remove_file(&self.partial) {
            // Somebody removed it, or the whole folder, while the run went on;
            // the record was written from memory.
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &self.partial, e)),
            _ => Ok((self.path, record)),
        }
    }
}

/// An unfinished record; none if not even its head is whole. The last line may
/// be cut off, since a run can end anywhere.
fn read_partial(path: &Path) -> Result<Option<Contents>> {
    let mut bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    // Cut before it is read as text: the end may be half a character.
    bytes.truncate(bytes.iter().rposition(|&b| b == b'\n').unwrap_or_default());
    let not_text = |e| damaged(path, &serde::de::Error::custom(e));
    let whole = String::from_utf8(bytes).map_err(not_text)?;
    let mut lines = whole.lines();
    let Some(head) = lines.next() else {
        return Ok(None);
    };
    let mut contents = Contents {
        head: serde_json::from_str(head).map_err(|e| damaged(path, &e))?,
        items: BTreeMap::new(),
        forced: BTreeMap::new(),
    };
    for line in lines {
        match serde_json::from_str(line).map_err(|e| damaged(path, &e))? {
            Line::Item(item) => drop(contents.items.insert(item.index, item)),
            Line::Forced(forced) => drop(contents.forced.insert(forced.index, forced)),
        }
    }
    Ok(Some(contents))
}

/// The values as lines of a JSON array, without its brackets.
fn lines(path: &Path, values: &[impl Serialize]) -> Result<String> {
    let lines: Vec<String> = values
        .iter()
        .map(|v| line(path, v))
        .collect::<Result<_>>()?;
    Ok(format!("\n{}\n", lines.join(",\n")))
}

fn line(path: &Path, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| unwritable(path, &e))
}

fn unwritable(path: &Path, e: &serde_json::Error) -> Error {
    Error::engine(format!("writing {}", path.display()), e)
}

fn damaged(path: &Path, e: &serde_json::Error) -> Error {
    Error::record(
        path.display().to_string(),
        format!("a whole record of schema {SCHEMA}"),
        e.to_string(),
        "the file is damaged; delete it and run the experiment again",
    )
}

fn edited(path: &Path, wanted: &str) -> Error {
    Error::record(
        path.display().to_string(),
        wanted,
        "others",
        "the file was edited; delete it and run the experiment again",
    )
}

impl Kind {
    fn expect(self, path: &Path, wanted: Self) -> Result<()> {
        if self == wanted {
            return Ok(());
        }
        Err(Error::record(
            path.display().to_string(),
            format!("a record of kind {wanted:?}").to_lowercase(),
            format!("{self:?}").to_lowercase(),
            "name another file",
        ))
    }
}

/// What a file holds. A record of another version is refused before its fields
/// are read.
fn kind(path: &Path, text: &str) -> Result<Kind> {
    #[derive(Deserialize)]
    struct Outer {
        head: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
        // The first versions did not have it.
        kind: Option<Kind>,
    }
    let found: Outer = serde_json::from_str(text).map_err(|e| damaged(path, &e))?;
    match found.head {
        Version {
            schema: SCHEMA,
            kind: Some(kind),
        } => Ok(kind),
        Version { schema: SCHEMA, .. } => Err(edited(path, "a head with its kind")),
        Version { schema, .. } => Err(Error::record(
            path.display().to_string(),
            format!("schema {SCHEMA}"),
            format!("schema {schema}"),
            "read it with the version of this program that wrote it, or run the experiment again",
        )),
    }
}
