//! What goes wrong while a comparison runs, and what becomes of its records.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use llama_quant::record::{Record, Records};
use program::{on_the_cpu, program};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

const RUN: [&str; 9] = [
    "compare",
    "--experiment",
    "bnb_4bit_nf4",
    "--turns",
    "all",
    "--limit",
    "16",
    "--out",
    "records",
];

fn folder() -> TempDir {
    tempdir().expect("a temporary folder")
}

fn start(dir: &Path) -> Child {
    let mut command = program(dir);
    command
        .args(RUN)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

fn run(dir: &Path) -> Output {
    program(dir).args(RUN).output().expect("the program starts")
}

fn errors(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The file with this extension among the records, if it is there.
fn file(dir: &Path, extension: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir.join("records")).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|e| e == extension))
}

/// Waits until the unfinished record has so many lines.
fn wait_for_lines(dir: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = file(dir, "partial").and_then(|path| fs::read(path).ok());
        let found = text.map_or(0, |text| text.iter().filter(|&&b| b == b'\n').count());
        if found >= lines {
            return;
        }
        assert!(Instant::now() < deadline, "{found} of {lines} lines");
        sleep(Duration::from_millis(5));
    }
}

/// The finished record, without when it started and how long it took.
fn lasting(dir: &Path) -> String {
    let path = file(dir, "json").expect("a record");
    Record::open(&path).expect("a whole record");
    let text = fs::read_to_string(path).expect("the record");
    let passing = |line: &&str| {
        let line = line.trim_start();
        !line.starts_with("\"started\":") && !line.starts_with("\"samples\":")
    };
    text.lines().filter(passing).collect::<Vec<_>>().join("\n")
}

/// The record of a run that nothing happens to.
static UNDISTURBED: LazyLock<String> = LazyLock::new(|| {
    let dir = folder();
    let output = run(dir.path());
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(
        fs::read_dir(dir.path().join("records"))
            .expect("records")
            .count(),
        1
    );
    lasting(dir.path())
});

/// Asserts that the record is that of an undisturbed run.
#[track_caller]
fn assert_undisturbed(dir: &Path) {
    let record = lasting(dir);
    for (i, (found, wanted)) in record.lines().zip(UNDISTURBED.lines()).enumerate() {
        let differ = found.bytes().zip(wanted.bytes()).position(|(a, b)| a != b);
        assert!(found == wanted, "line {i} differs from byte {differ:?}");
    }
    assert_eq!(record.len(), UNDISTURBED.len());
}

/// Runs once more and asserts that the record is that of an undisturbed run.
#[track_caller]
fn assert_resumes(dir: &Path) {
    let output = run(dir);
    assert!(output.status.success(), "{}", errors(&output));
    assert_undisturbed(dir);
    assert_eq!(file(dir, "partial"), None);
    assert_eq!(file(dir, "lock"), None);
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let status = kill.args(["-s", name, &child.id().to_string()]).status();
    assert!(status.expect("kill(1)").success());
}

#[cfg(unix)]
#[rstest::rstest]
fn an_interrupt_finishes_the_item_and_says_how_to_go_on(#[values("INT", "TERM")] name: &str) {
    let dir = folder();
    let child = start(dir.path());
    wait_for_lines(dir.path(), 5);
    signal(&child, name);
    let output = child.wait_with_output().expect("the child");
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("finishing the item"), "{text}");
    assert!(
        text.contains("interrupted; what is finished is in records: the same command"),
        "{text}"
    );
    let partial = file(dir.path(), "partial").expect("an unfinished record");
    assert!(
        fs::read(partial).expect("its bytes").ends_with(b"\n"),
        "whole lines"
    );
    assert_eq!(file(dir.path(), "json"), None);
    assert_eq!(file(dir.path(), "lock"), None);
    assert_resumes(dir.path());
}

#[test]
fn a_run_that_is_killed_leaves_no_lock_that_holds_the_next_one_up() {
    let dir = folder();
    let mut child = start(dir.path());
    wait_for_lines(dir.path(), 4);
    child.kill().expect("a child to kill");
    child.wait().expect("the child");
    assert!(
        file(dir.path(), "lock").is_some(),
        "the file stays, the lock does not"
    );
    assert_resumes(dir.path());
}

#[test]
fn a_run_killed_at_any_point_resumes_to_the_bytes_of_an_uninterrupted_one() {
    let dir = folder();
    let mut kills = 0;
    for attempt in 0..40 {
        let mut child = start(dir.path());
        // Points that do not fall together with anything: 60, 157, 254 … ms.
        sleep(Duration::from_millis(60 + 97 * (attempt % 9)));
        child.kill().expect("a child to kill");
        if child.wait().expect("the child").success() {
            break;
        }
        kills += 1;
        // A line cut in the middle, as a kill inside a write leaves it.
        let partial = file(dir.path(), "partial");
        if let Some(partial) = &partial {
            let text = fs::read(partial).expect("the unfinished record");
            if attempt % 3 == 0
                && text.len() > 10
                && text.iter().filter(|&&b| b == b'\n').count() > 1
            {
                fs::write(partial, &text[..text.len() - 7]).expect("a shorter file");
            }
        }
        if kills >= 6 && partial.is_some() {
            break;
        }
    }
    assert!(kills >= 3, "{kills} kills");
    assert_resumes(dir.path());
}

#[test]
fn a_second_process_on_the_same_record_is_refused_and_the_first_goes_on() {
    let dir = folder();
    let child = start(dir.path());
    wait_for_lines(dir.path(), 2);
    let second = run(dir.path());
    let text = errors(&second);
    assert!(!second.status.success());
    assert!(
        text.contains("no other process that writes it") && text.contains("--out"),
        "{text}"
    );
    let first = child.wait_with_output().expect("the child");
    assert!(first.status.success(), "{}", errors(&first));
    assert_undisturbed(dir.path());
}

#[test]
fn a_record_folder_that_vanishes_is_made_again_with_the_whole_record() {
    let dir = folder();
    let child = start(dir.path());
    wait_for_lines(dir.path(), 4);
    fs::remove_dir_all(dir.path().join("records")).expect("a folder to remove");
    let output = child.wait_with_output().expect("the child");
    assert!(output.status.success(), "{}", errors(&output));
    assert_undisturbed(dir.path());
}

#[cfg(unix)]
#[test]
fn a_disk_that_becomes_full_ends_the_run_and_loses_nothing_that_was_written() {
    let dir = folder();
    // A limit on the size of files, with its signal ignored, makes writes fail
    // as a full disk does, for every user.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"]);
    shell.arg(env!("CARGO_BIN_EXE_llama-quant")).args(RUN);
    on_the_cpu(&mut shell);
    let output = shell.current_dir(dir.path()).output().expect("a shell");
    let text = errors(&output);
    assert!(!output.status.success());
    assert!(
        text.contains("cannot write the unfinished record"),
        "{text}"
    );
    assert!(text.contains("File too large"), "{text}");
    let partial = file(dir.path(), "partial").expect("an unfinished record");
    let lines = fs::read(partial)
        .expect("its bytes")
        .iter()
        .filter(|&&b| b == b'\n')
        .count();
    assert!(lines > 2, "{lines} lines");
    assert_resumes(dir.path());
}

#[test]
fn an_unfinished_record_that_ends_within_a_character_is_continued() {
    let dir = folder();
    let mut child = start(dir.path());
    wait_for_lines(dir.path(), 4);
    child.kill().expect("a child to kill");
    child.wait().expect("the child");
    let partial = file(dir.path(), "partial").expect("an unfinished record");
    let mut text = fs::read(&partial).expect("its bytes");
    text.extend("{\"item\":{\"question\":\"Où".as_bytes());
    text.pop();
    assert!(std::str::from_utf8(&text).is_err());
    fs::write(&partial, text).expect("the unfinished record");
    assert_resumes(dir.path());
}

/// The tokens that one of `records` alone generates, by its experiment.
fn own_tokens(records: &[Record], experiment: &str) -> BTreeSet<u32> {
    let tokens = |own: bool| {
        let records = records
            .iter()
            .filter(move |r| (r.head.setup.experiment == experiment) == own);
        records
            .flat_map(|r| &r.items)
            .flat_map(|item| &item.tokens)
            .copied()
    };
    let others: BTreeSet<u32> = tokens(false).collect();
    tokens(true)
        .filter(|token| !others.contains(token))
        .collect()
}

/// A copy of the tiny Llama whose tokenizer fails on decoding `token`: it is
/// replaced by one character, and that stripped from its start and its end.
fn model_that_fails_at(dir: &Path, token: u32) {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    fs::create_dir(dir.join("model")).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(own.join(name), dir.join("model").join(name)).expect("a copy");
    }
    let text = fs::read_to_string(own.join("tokenizer.json")).expect("a tokenizer");
    let mut tokenizer: Value = serde_json::from_str(&text).expect("JSON");
    let vocabulary = tokenizer["model"]["vocab"]
        .as_object()
        .expect("a vocabulary");
    let named = vocabulary.iter().find(|(_, id)| **id == json!(token));
    let (name, _) = named.expect("a token of the vocabulary");
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": name}, "content": "☃"},
        {"type": "Strip", "content": "☃", "start": 1, "stop": 1},
        tokenizer["decoder"],
    ]});
    fs::write(dir.join("model/tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
}

#[test]
fn an_experiment_that_fails_leaves_the_others_their_records_and_is_run_again() {
    let dir = folder();
    let run = |more: &[&str]| {
        let arguments = "compare --turns all --limit 4 --no-speed --experiment fp16_baseline \
                         bnb_4bit_nf4 bnb_4bit_fp4";
        let mut command = program(dir.path());
        command.args(arguments.split_whitespace()).args(more);
        command.output().expect("the program starts")
    };
    let whole = run(&["--out", "whole"]);
    assert!(whole.status.success(), "{}", errors(&whole));
    let whole = Records::open(&dir.path().join("whole")).expect("whole records");
    let own = own_tokens(&whole.evaluations, "bnb_4bit_nf4");
    let token = own.first().expect("a token that NF4 alone answers with");
    model_that_fails_at(dir.path(), *token);

    let assert_fails = || {
        let output = run(&["--model", "model", "--out", "records"]);
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in [
            "bnb_4bit_nf4 failed: engine failed while decoding tokens",
            "error: without a record: bnb_4bit_nf4; the same command goes on with them",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let table = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(table.contains("record: records/bnb_4bit_fp4-"), "{table}");
    };
    assert_fails();
    let records = dir.path().join("records");
    let written = Records::open(&records).expect("whole records");
    let names = written
        .evaluations
        .iter()
        .map(|r| r.head.setup.experiment.as_str());
    let names: Vec<&str> = names.collect();
    assert_eq!(names, ["bnb_4bit_fp4", "fp16_baseline"]);
    // What is finished is kept, with its times.
    assert_fails();
    assert_eq!(Records::open(&records).expect("whole records"), written);
}

#[rstest::rstest]
fn an_experiment_after_one_that_the_device_refuses_is_tried(
    #[values("compare", "bench")] command: &str,
) {
    let dir = folder();
    let mut refused = program(dir.path());
    refused.args([command, "--device", "cuda:99", "--experiment"]);
    let output = refused.args(["fp16_baseline", "bnb_4bit_nf4"]).output();
    let output = output.expect("the program starts");
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for name in ["fp16_baseline", "bnb_4bit_nf4"] {
        assert!(
            text.contains(&format!("{name} failed: device cuda:99")),
            "{text}"
        );
    }
    assert!(
        text.contains("error: without a record: fp16_baseline, bnb_4bit_nf4;"),
        "{text}"
    );
}

#[test]
fn what_an_earlier_process_gave_up_is_not_run_and_named_at_the_end() {
    let dir = folder();
    let run = |command: &str| {
        let mut program = program(dir.path());
        program.args(command.split_whitespace()).args([
            "--experiment",
            "fp16_baseline",
            "bnb_8bit",
            "bnb_4bit_nf4",
            "--given-up",
            "bnb_8bit",
            "--out",
            "records",
        ]);
        let output = program.output().expect("the program starts");
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("error: without a record: bnb_8bit;"),
            "{text}"
        );
    };
    run("compare --limit 1 --no-speed");
    run("bench --energy 0");
    let records = Records::open(&dir.path().join("records")).expect("whole records");
    let compared = records.evaluations.iter().map(|r| &r.head.setup.experiment);
    let benched = records.benches.iter().map(|r| &r.head.setup.experiment);
    let wanted = ["bnb_4bit_nf4", "fp16_baseline"];
    assert_eq!(compared.collect::<Vec<_>>(), wanted);
    assert_eq!(benched.collect::<Vec<_>>(), wanted);
}

#[test]
fn a_model_that_the_host_has_no_memory_for_is_refused_before_it_loads() {
    let dir = folder();
    // 64 TB in 4 bits.
    let config = json!({
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 1 << 16,
        "intermediate_size": 1 << 19, "num_hidden_layers": 1000, "num_attention_heads": 512,
        "num_key_value_heads": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "eos_token_id": 1,
    });
    fs::create_dir(dir.path().join("model")).expect("a folder");
    fs::write(dir.path().join("model/config.json"), config.to_string()).expect("a file");
    let mut bench = program(dir.path());
    bench.args("bench --weights random --model model --device cpu".split_whitespace());
    bench.args(["--out", "records", "--experiment", "bnb_4bit_nf4"]);
    let output = bench.output().expect("the program starts");
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "bnb_4bit_nf4 failed: device cpu: memory for a model in NF4",
        "MiB of weights",
        "MiB available; ",
        "--device cuda:0",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!dir.path().join("records").exists());
}
