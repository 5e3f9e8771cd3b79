//! Experiments as tests run them.

use std::path::PathBuf;

use indicatif::ProgressBar;
use llama_quant::coqa::{Scoring, Turns};
use llama_quant::engine::Devices;
use llama_quant::experiment::Experiment;
use llama_quant::measure::{Options, Shared, evaluate};
use llama_quant::record::Record;
use llama_quant::source::hub::Located;

/// What `compare` asks for by default, but no speed.
pub fn options(
    model: Located,
    dataset: Located,
    devices: impl Into<Devices>,
    out: PathBuf,
) -> Options {
    Options {
        model,
        dataset,
        turns: Turns::Last,
        scoring: Scoring::LmEval,
        limit: None,
        bos: true,
        first_line: true,
        devices: devices.into(),
        speed: false,
        out,
    }
}

/// The records of the named experiments, measured unless they are there.
pub fn records(names: &[&str], options: Options) -> Vec<Record> {
    let shared = Shared::open(options).expect("a model and questions");
    let record = |name: &&str| {
        let experiment = Experiment::named(name).expect("an experiment");
        let run = evaluate(&experiment, &shared, &ProgressBar::hidden());
        let (_, record) = run.expect("a run");
        record
    };
    names.iter().map(record).collect()
}
