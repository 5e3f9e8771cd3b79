//! The speed of several formats, in rows as tables and pictures have them.

use serde::Serialize;

use super::machine::{self, Checksum, Fact};
use super::{Entry, file_name_of, words};
use crate::error::Result;
use crate::experiment::EXPERIMENTS;
use crate::quant::Format;
use crate::record::{self, Bench, CardState, Memory, Plan, Weights};
use crate::verdict::speed::{AllTurns, Decode, Documents, Energy, Prefill, Speed, speed};

/// What the formats of one comparison or bench took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Speeds {
    /// One a format whose speed was measured.
    pub runs: Vec<Run>,
    /// By format, then by number of sequences.
    pub decode: Vec<Named<Decode>>,
    /// By format, then by number of tokens.
    pub prefill: Vec<Named<Prefill>>,
    pub energy: Vec<Named<Energy>>,
    pub documents: Vec<Named<Documents>>,
    pub turns: Vec<Named<AllTurns>>,
    pub memory: Vec<Named<Held>>,
    pub card: Vec<Named<Moment>>,
}

/// Something of one format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Named<T> {
    /// The format, as printed.
    pub name: String,
    #[serde(flatten)]
    pub of: T,
}

/// One format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    pub name: String,
    #[serde(skip)]
    pub format: Format,
    pub load_seconds: f64,
    /// None where nothing was asked.
    pub evaluate_seconds: Option<f64>,
    pub speed: Speed,
    /// The steps of a single sequence, as measured.
    #[serde(skip)]
    pub single_samples: Vec<f64>,
}

/// What an engine held, next to what the shapes of the weights say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Held {
    /// From shapes alone, with quantisation state.
    pub formula_bytes: u64,
    #[serde(flatten)]
    pub memory: Memory,
}

/// A card at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    /// `before` or `after` the measurements.
    pub when: &'static str,
    #[serde(flatten)]
    pub state: CardState,
}

/// Speeds measured without questions: benches of one model on one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Benched {
    /// Names its files: letters, digits and hyphens.
    pub slug: String,
    pub title: String,
    pub speeds: Speeds,
    pub machine: Vec<Fact>,
    pub files: Vec<Checksum>,
    pub sources: Vec<Source>,
}

/// Where the numbers of one format are from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    pub name: String,
    pub started: String,
    /// The record's file.
    pub record: String,
}

impl Speeds {
    /// The speeds of a comparison's runs, where they were measured.
    pub(super) fn of_entries(entries: &[Entry]) -> Self {
        let mut speeds = Self::default();
        for entry in entries {
            if let Some(speed) = &entry.row.speed {
                let run = Run {
                    name: entry.name.clone(),
                    format: entry.row.format,
                    load_seconds: entry.row.load_seconds,
                    evaluate_seconds: Some(entry.row.evaluate_seconds),
                    speed: speed.clone(),
                    single_samples: entry.single_samples.clone(),
                };
                speeds.add(run, entry.row.size.with_state);
            }
        }
        speeds
    }

    fn add(&mut self, run: Run, formula_bytes: u64) {
        fn named<T: Clone>(name: &str, all: &[T]) -> Vec<Named<T>> {
            let name = |of: &T| Named {
                name: name.to_owned(),
                of: of.clone(),
            };
            all.iter().map(name).collect()
        }
        let Run { name, speed, .. } = &run;
        self.decode.extend(named(name, &speed.decode));
        self.prefill.extend(named(name, &speed.prefill));
        self.energy.extend(named(name, &speed.energy));
        self.documents.extend(named(name, &speed.documents));
        self.turns.extend(named(name, &speed.turns));
        let held = speed.memory.map(|memory| Held {
            formula_bytes,
            memory,
        });
        self.memory.extend(named(name, held.as_slice()));
        let moments = ["before", "after"].into_iter().zip(&speed.card);
        let moments = moments.map(|(when, &state)| Moment { when, state });
        let moments: Vec<Moment> = moments.collect();
        self.card.extend(named(name, &moments));
        self.runs.push(run);
    }
}

/// The steps of a single sequence among `samples`.
pub(super) fn single(samples: Option<&record::Speed>) -> Vec<f64> {
    let of_one = |d: &&record::Decode| d.sequences == 1;
    let single = samples.and_then(|s| s.decode.iter().find(of_one));
    single.map_or_else(Vec::new, |d| d.seconds.clone())
}

/// `benches` by model, weights, engine, processor, number of devices and cached
/// tokens. Of several of one experiment the latest counts.
pub(super) fn benched(benches: &[Bench]) -> Result<Vec<Benched>> {
    let mut groups: Vec<Vec<&Bench>> = Vec::new();
    for bench in benches {
        match groups.iter_mut().find(|group| same(group[0], bench)) {
            Some(group) => add_latest(group, bench),
            None => groups.push(vec![bench]),
        }
    }
    groups.into_iter().map(group).collect()
}

fn same(a: &Bench, b: &Bench) -> bool {
    let of = |bench: &Bench| {
        let (setup, environment) = (&bench.head.setup, &bench.head.environment);
        let model = (setup.model.clone(), setup.config.clone(), setup.weights);
        let plan = (setup.devices, setup.plan.cached_tokens);
        (model, setup.engine.clone(), processor(environment), plan)
    };
    of(a) == of(b)
}

/// Name of what ran the model.
fn processor(environment: &record::Environment) -> String {
    let gpu = environment.gpu.as_ref();
    gpu.map_or_else(|| environment.cpu.clone(), |gpu| gpu.name.clone())
}

fn add_latest<'a>(group: &mut Vec<&'a Bench>, bench: &'a Bench) {
    let name = |b: &Bench| b.head.setup.experiment.clone();
    match group.iter_mut().find(|other| name(other) == name(bench)) {
        None => group.push(bench),
        Some(other) if other.head.environment.started < bench.head.environment.started => {
            *other = bench;
        }
        Some(_) => {}
    }
}

fn group(mut benches: Vec<&Bench>) -> Result<Benched> {
    let place = |b: &&Bench| {
        let mut known = EXPERIMENTS.iter();
        known.position(|e| e.name == b.head.setup.experiment)
    };
    // Those of no row of the table last.
    benches.sort_by_key(|b| place(b).unwrap_or(EXPERIMENTS.len()));
    let mut speeds = Speeds::default();
    for bench in &benches {
        let run = Run {
            name: bench.head.setup.format.label(bench.head.setup.compute),
            format: bench.head.setup.format,
            load_seconds: bench.load_seconds,
            evaluate_seconds: None,
            speed: speed(bench.head.setup.format, bench.head.parts, &bench.speed)?,
            single_samples: single(Some(&bench.speed)),
        };
        speeds.add(run, bench.head.size.with_state);
    }
    let first = &benches[0].head;
    let setup = &first.setup;
    let weights = match setup.weights {
        Weights::Checkpoint => "",
        Weights::Random { .. } => ", random weights",
    };
    let (model, engine) = (&setup.model.name, &setup.engine);
    let several = match setup.devices {
        1 => String::new(),
        count => format!("{count} x "),
    };
    let cached = match setup.plan.cached_tokens {
        Plan::CACHED_TOKENS => String::new(),
        tokens => format!(", {tokens} cached tokens"),
    };
    let heads = benches.iter().map(|b| {
        let setup = &b.head.setup;
        (&b.head.environment, setup.compute, &setup.program)
    });
    let source = |bench: &&Bench| Source {
        name: bench.head.setup.format.label(bench.head.setup.compute),
        started: bench.head.environment.started.clone(),
        record: file_name_of(&Bench::path("".as_ref(), &bench.head.setup)),
    };
    Ok(Benched {
        slug: words(&format!("speed {model} {several}{engine}{weights}{cached}")),
        title: format!(
            "Speed of {model}, {engine}{weights}{cached}: {several}{}",
            processor(&first.environment)
        ),
        speeds,
        machine: machine::machine(heads),
        files: machine::checksums(&setup.model),
        sources: benches.iter().map(source).collect(),
    })
}
