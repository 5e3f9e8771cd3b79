//! The program as a user runs it, in a folder of its own.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use llama_quant::experiment::BASELINE;
use llama_quant::record::{Bench, Record};
use program::program;
use rstest::rstest;
use tempfile::tempdir;

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = program(dir);
    command
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Asks one question in the format of `experiment`.
#[track_caller]
fn one_question(dir: &Path, experiment: &str, out: &str, options: &[&str]) {
    let arguments = [
        "compare",
        "--limit",
        "1",
        "--out",
        out,
        "--experiment",
        experiment,
    ];
    let output = run(dir, &[&arguments[..], options].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Files below `dir` with this extension.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_comparison_prints_one_table_and_writes_one_record_a_format() {
    let dir = tempdir().expect("a folder");
    let output = run(dir.path(), &["compare", "--limit", "3"]);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for format in ["FP16", "INT8", "NF4", "FP4"] {
        let lines = stdout
            .lines()
            .filter(|line| line.trim_start().starts_with(format));
        assert_eq!(lines.count(), 1, "one line for {format} in\n{stdout}");
    }
    assert!(stdout.contains("3 questions on 3 stories (turns last), scoring lm_eval, BOS on"));
    assert!(stdout.contains("noise floor"));
    let records = files(&dir.path().join("reports/records"), "json");
    assert_eq!(records.len(), 5, "{records:?}");
    for path in records {
        let name = path
            .file_name()
            .expect("a file name")
            .to_string_lossy()
            .into_owned();
        assert!(stdout.contains(&name), "{name} is named in\n{stdout}");
        let record = Record::open(&path).expect("a whole record");
        assert_eq!((record.items.len(), record.forced.len()), (3, 3), "{name}");
        assert_eq!(record.head.setup.task.limit, Some(3));
    }
}

#[test]
fn without_speed_a_record_has_the_same_items_and_no_times_of_steps() {
    let dir = tempdir().expect("a folder");
    let one = |out: &str, options: &[&str]| {
        one_question(dir.path(), "bnb_8bit", out, options);
        let path = &files(&dir.path().join(out), "json")[0];
        Record::open(path).expect("a whole record")
    };
    let (with, without) = (one("with", &[]), one("without", &["--no-speed"]));
    assert_eq!(with.head.key, without.head.key);
    assert_eq!(
        (&with.items, &with.forced),
        (&without.items, &without.forced)
    );
    assert!(with.samples.speed.is_some() && without.samples.speed.is_none());
}

#[test]
fn a_finished_experiment_is_not_run_again() {
    let dir = tempdir().expect("a folder");
    let once = || one_question(dir.path(), BASELINE, "records", &[]);
    once();
    let record = &files(dir.path(), "json")[0];
    let before = fs::read(record).expect("the record");
    once();
    assert_eq!(
        fs::read(record).expect("the record"),
        before,
        "the times in it are the old ones"
    );
    assert_eq!(files(dir.path(), "json").len(), 1);
}

#[test]
fn a_bench_has_as_many_sequences_and_tokens_in_the_cache_as_it_is_told() {
    let dir = tempdir().expect("a folder");
    let arguments = "bench --cached 300 --sequences 2 1 2 --energy 0 --experiment";
    let arguments: Vec<&str> = arguments.split(' ').chain([BASELINE]).collect();
    let output = run(dir.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bench = Bench::open(&files(dir.path(), "json")[0]).expect("a bench");
    assert_eq!(bench.head.setup.plan.cached_tokens, 300);
    let decode = bench.speed.decode.iter();
    let decode: Vec<_> = decode.map(|d| (d.sequences, d.cached_tokens)).collect();
    assert_eq!(decode, [(1, 300), (2, 300)]);
}

#[test]
fn other_options_make_another_record_beside_the_first() {
    let dir = tempdir().expect("a folder");
    for options in [
        &[][..],
        &["--no-bos"],
        &["--scoring", "max"],
        &["--turns", "all"],
    ] {
        one_question(dir.path(), BASELINE, "records", options);
    }
    assert_eq!(files(dir.path(), "json").len(), 4);
}

#[rstest]
#[case::experiment(&["compare", "--experiment", "nf5"], &["nf5", "fp16_baseline", "bnb_4bit_nf4"])]
#[case::device(&["compare", "--device", "cuda:99"], &["device cuda:99", "--device cpu"])]
#[case::turns(&["compare", "--turns", "some"], &["some", "last or all"])]
#[case::scoring(&["compare", "--scoring", "best"], &["best", "lm_eval, official, max"])]
#[case::model(&["compare", "--model", "nowhere"], &["nowhere/config.json", "No such file"])]
#[case::dataset(&["compare", "--dataset", "nothing.jsonl"], &["nothing.jsonl", "No such file"])]
#[case::limit(&["compare", "--limit", "0"], &["--limit", "at least 1"])]
#[case::bench(&["bench", "--experiment", "nf5"], &["nf5", "fp16_baseline"])]
#[case::bench_device(&["bench", "--device", "cuda:99"], &["device cuda:99", "--device cpu"])]
#[case::no_device(&["compare", "--device", "gpu"], &["--device", "auto, cpu or cuda:N", "gpu"])]
#[case::device_twice(&["compare", "--device", "cuda:1,1"], &["--device", "cuda:1 twice"])]
#[case::cached(&["bench", "--cached", "2041"], &["--cached", "1 to 2040 tokens", "2041"])]
#[case::size(&["size", "--model", "nowhere"], &["nowhere/config.json"])]
#[case::packed(
    &["compare", "--model", concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden/bnb-checkpoints/fp4")],
    &["make the FP16 baseline from", "packed in FP4", "compare the unquantised", "llama-quant bench"],
)]
fn what_cannot_be_done_is_one_clear_message_and_no_record(
    #[case] arguments: &[&str],
    #[case] wanted: &[&str],
) {
    let dir = tempdir().expect("a folder");
    let output = run(dir.path(), arguments);
    let stderr = text(&output.stderr);
    assert!(!output.status.success());
    for part in wanted {
        assert!(stderr.contains(part), "{part:?} in\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(files(dir.path(), "json").is_empty());
}

#[test]
fn the_size_of_a_model_needs_its_configuration_alone() {
    let dir = tempdir().expect("a folder");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/configs/llama-3.2-1b");
    let output = run(
        dir.path(),
        &["size", "--model", config.to_str().expect("UTF-8")],
    );
    let stdout = text(&output.stdout);
    for figure in [
        "2357.129", "965.129", "979.856", "1023.129", "1429.129", "1430.566",
    ] {
        assert!(stdout.contains(figure), "{figure} in\n{stdout}");
    }
}

#[test]
fn a_bench_prints_a_line_and_writes_a_record_a_format_and_the_report_takes_them() {
    let dir = tempdir().expect("a folder");
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/llama/tied_gqa_llama3rope");
    let model = model.to_str().expect("UTF-8");
    let arguments = [
        "bench",
        "--weights",
        "random",
        "--model",
        model,
        "--out",
        "reports/records/x",
    ];
    let output = run(dir.path(), &arguments);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let records = files(dir.path(), "json");
    assert_eq!(records.len(), 6, "{records:?}");
    for (name, path) in [
        "FP4",
        "NF4",
        "NF4, BF16",
        "NF4, no double quant",
        "INT8",
        "FP16",
    ]
    .into_iter()
    .zip(records)
    {
        let bench = Bench::open(&path).expect("a whole record");
        let lines = stdout
            .lines()
            .filter(|line| line.trim_start().starts_with(&format!("{name}  ")));
        assert_eq!(lines.count(), 1, "one line for {name} in\n{stdout}");
        assert_eq!(
            bench.head.setup.format.label(bench.head.setup.compute),
            name
        );
        let file = path.file_name().expect("a name").to_string_lossy();
        assert!(stdout.contains(&*file), "{file} is named in\n{stdout}");
        let batches: Vec<usize> = bench.speed.decode.iter().map(|d| d.sequences).collect();
        assert_eq!(batches, [1, 4, 16]);
    }
    // A second run replaces what it measures anew.
    let once = [&arguments[..], &["--experiment", "bnb_8bit"]].concat();
    assert!(run(dir.path(), &once).status.success());
    assert_eq!(files(dir.path(), "json").len(), 6);
    let output = run(dir.path(), &["report"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = fs::read_to_string(dir.path().join("reports/REPORT.md")).expect("a report");
    assert!(report.contains("## 1. Speed of tied_gqa_llama3rope, cpu, random weights"));
}

#[rstest]
#[case::schema("\"schema\": 2", "\"schema\": 1", &["schema 2", "schema 1", "run the experiment again"])]
#[case::kind("\"kind\": \"evaluation\"", "\"kind\": \"bench\"", &["of kind evaluation", "bench"])]
#[case::cut("\"samples\"", "", &["record", "delete it and run the experiment again"])]
#[case::key("\"turns\": \"last\"", "\"turns\": \"all\"", &["a key that belongs to the setup"])]
fn a_record_of_another_version_or_damaged_is_refused_by_name(
    #[case] from: &str,
    #[case] to: &str,
    #[case] wanted: &[&str],
) {
    let dir = tempdir().expect("a folder");
    one_question(dir.path(), BASELINE, "records", &[]);
    let path = &files(dir.path(), "json")[0];
    let text = fs::read_to_string(path).expect("the record");
    assert!(text.contains(from), "{from} in the record");
    let damaged = match to {
        "" => text[..text.find(from).expect("the place to cut")].to_owned(),
        to => text.replace(from, to),
    };
    fs::write(path, damaged).expect("the damaged record");
    let error = Record::open(path).expect_err("a refusal").to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    for part in wanted {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}
