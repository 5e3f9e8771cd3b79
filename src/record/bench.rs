//! The record of a measurement of speed alone: no questions, no scores.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Environment, Kind, Model, Plan, Speed, Weights, damaged, digest, edited, kind, replace,
};
use crate::error::{Error, Result};
use crate::quant::size::Parts;
use crate::quant::{Bytes, Compute, Format};
use crate::source::config::Config;

/// The speed of one model in one format on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    pub head: BenchHead,
    pub load_seconds: f64,
    pub speed: Speed,
}

/// What was measured, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchHead {
    pub schema: u32,
    /// [`Kind::Bench`].
    pub kind: Kind,
    /// SHA-256 of `setup`.
    pub key: String,
    pub setup: BenchSetup,
    pub environment: Environment,
    /// Bytes of the weights held, counted both ways.
    pub size: Bytes,
    /// The same bytes, part by part.
    pub parts: Parts,
}

/// Everything that a speed depends on, the machine aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchSetup {
    pub experiment: String,
    pub format: Format,
    /// What weights are rounded to before they are multiplied.
    pub compute: Compute,
    pub model: Model,
    pub weights: Weights,
    pub config: Config,
    /// What ran the model: `cpu` or `cuda`.
    pub engine: String,
    /// How many devices read the documents and the stories, each with a copy of
    /// the model; everything else is of the first.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub devices: usize,
    /// Sequences that the engine had room for.
    pub slots: usize,
    /// Tokens that each of them had room for.
    pub context: usize,
    pub plan: Plan,
    /// SHA-256 of the program that ran.
    pub program: String,
}

const fn one() -> usize {
    1
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

impl BenchSetup {
    /// SHA-256 of everything in here.
    pub fn key(&self) -> String {
        let json = serde_json::to_vec(self).expect("a setup has string keys and finite numbers");
        digest(&json)
    }
}

impl Bench {
    /// Where the bench of `setup` lies in `dir`.
    pub fn path(dir: &Path, setup: &BenchSetup) -> PathBuf {
        dir.join(format!(
            "bench-{}-{}.json",
            setup.experiment,
            &setup.key()[..8]
        ))
    }

    /// Reads a bench.
    ///
    /// # Errors
    /// If the file is damaged, of another schema version, or no bench.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        kind(path, &text)?.expect(path, Kind::Bench)?;
        Self::read(path, &text)
    }

    pub(super) fn read(path: &Path, text: &str) -> Result<Self> {
        let bench: Self = serde_json::from_str(text).map_err(|e| damaged(path, &e))?;
        if bench.head.key != bench.head.setup.key() {
            return Err(edited(path, "a key that belongs to the setup"));
        }
        Ok(bench)
    }

    /// Writes the bench into `dir`, whole or not at all, in place of an earlier
    /// one of the same setup.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let path = Self::path(dir, &self.head.setup);
        let text = |value: serde_json::Result<String>| {
            value.map_err(|e| Error::engine(format!("writing {}", path.display()), e))
        };
        let head = text(serde_json::to_string_pretty(&self.head))?;
        let speed = text(serde_json::to_string(&self.speed))?;
        let load = self.load_seconds;
        let text =
            format!("{{\"head\": {head},\n\"load_seconds\": {load},\n\"speed\": {speed}}}\n");
        replace(&path, text.as_bytes())?;
        Ok(path)
    }
}
