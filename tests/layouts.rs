//! Layouts that others rely on, as snapshots: the fields of a record, and the
//! sizes of Llama-3.2-1B.

#[path = "common/snapshot.rs"]
mod snapshot;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use indicatif::ProgressBar;
use llama_quant::coqa::{Scoring, Turns};
use llama_quant::engine::Device;
use llama_quant::experiment::{EXPERIMENTS, Experiment};
use llama_quant::measure::{Options, Shared, embedded, evaluate};
use llama_quant::quant::size::{MIB, model_bytes};
use llama_quant::record::SCHEMA;
use llama_quant::source::config::Config;
use llama_quant::source::hub::Located;
use serde_json::Value;

/// `path: type` of every field below `value`; the elements of a list are one.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Object(fields_of) => {
            for (name, value) in fields_of {
                // File names are data, not fields.
                let name = if path.ends_with("files") { "*" } else { name };
                fields(
                    value,
                    format!("{path}.{name}").trim_start_matches('.'),
                    found,
                );
            }
            return;
        }
        Value::Array(elements) => {
            for element in elements {
                fields(element, &format!("{path}[]"), found);
            }
            return;
        }
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
    };
    found.insert(format!("{path}: {kind}"));
}

#[test]
fn a_record_has_the_fields_of_its_schema() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = Options {
        model: Located::local(embedded::model().expect("the tiny Llama")),
        dataset: Located::local(embedded::dataset().expect("the data set")),
        turns: Turns::Last,
        scoring: Scoring::LmEval,
        limit: Some(1),
        bos: true,
        first_line: true,
        devices: Device::Cpu.into(),
        speed: true,
        out: dir.path().to_owned(),
    };
    let experiment = Experiment::named("bnb_4bit_nf4").expect("an experiment");
    let progress = ProgressBar::hidden();
    let shared = Shared::open(options).expect("a model and questions");
    let (path, _) = evaluate(&experiment, &shared, &progress).expect("a run");
    let text = std::fs::read_to_string(path).expect("the record");
    let mut found = BTreeSet::new();
    fields(&serde_json::from_str(&text).expect("JSON"), "", &mut found);
    // Outside a git checkout these two are null.
    let git = |line: &String| !line.contains("environment.git_");
    let text: Vec<String> = found.into_iter().filter(git).collect();
    let suffix = format!("schema-{SCHEMA}");
    snapshot::with_suffix(&suffix, || {
        insta::assert_snapshot!("record", text.join("\n"))
    });
}

#[test]
fn the_sizes_of_llama_3_2_1b_are_as_committed() {
    let shape = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/configs/llama-3.2-1b");
    let config = Config::open(&shape).expect("the shape");
    let mut text = format!("{:24} {:>11} {:>11}\n", "experiment", "MiB", "MiB+state");
    for Experiment { name, format, .. } in EXPERIMENTS {
        let bytes = model_bytes(&config, format);
        let [parameters, with_state] =
            [bytes.parameters, bytes.with_state].map(|bytes| bytes as f64 / MIB);
        writeln!(text, "{name:24} {parameters:>11.3} {with_state:>11.3}").expect("a string");
    }
    snapshot::with_suffix("llama-3.2-1b", || insta::assert_snapshot!("sizes", text));
}
