//! What goes wrong while a comparison runs, and what becomes of its records.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use llama_quant::record::Record;
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

fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-quant"));
    // On the CPU also where there is a GPU: `auto` then finds none.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.current_dir(dir).env_remove("RUST_LOG").args(RUN);
    command
}

fn start(dir: &Path) -> Child {
    let mut command = program(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

fn run(dir: &Path) -> Output {
    program(dir).output().expect("the program starts")
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

/// Runs once more and asserts that the record is that of an undisturbed run.
#[track_caller]
fn assert_resumes(dir: &Path) {
    let output = run(dir);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(
        lasting(dir) == *UNDISTURBED,
        "another record than an undisturbed run's"
    );
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
    assert!(
        lasting(dir.path()) == *UNDISTURBED,
        "another record than an undisturbed run's"
    );
}

#[test]
fn a_record_folder_that_vanishes_is_made_again_with_the_whole_record() {
    let dir = folder();
    let child = start(dir.path());
    wait_for_lines(dir.path(), 4);
    fs::remove_dir_all(dir.path().join("records")).expect("a folder to remove");
    let output = child.wait_with_output().expect("the child");
    assert!(output.status.success(), "{}", errors(&output));
    assert!(
        lasting(dir.path()) == *UNDISTURBED,
        "another record than an undisturbed run's"
    );
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
