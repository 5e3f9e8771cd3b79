//! The hub, its cache and all that can go wrong between them, on a server on
//! loopback that speaks the hub's protocol.

#[path = "common/hub.rs"]
mod hub;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hub::{Answer, COMMIT, Hub, NEVER, Repo, Request, SIGNATURE, git_sum, sha256};
use indicatif::ProgressBar;
use llama_quant::error::{Error, Mismatch};
use llama_quant::record::{Bench, Record};
use llama_quant::source::hub::settings::Token;
use llama_quant::source::hub::{Hub as Client, Id, Settings};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;
use tempfile::{TempDir, tempdir};

const TOKEN: &str = "hf_averysecrettokenthatnobodymaysee42";
const MODEL: &str = "some-org/tiny-llama";
const DATASET: &str = "EleutherAI/coqa";

fn fixture(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn folder() -> TempDir {
    tempdir().expect("a temporary folder")
}

/// The model of the project: its weights lie on the second host.
fn tiny_llama() -> Repo {
    let files = ["config.json", "tokenizer.json", "model.safetensors"];
    let mut repo = Repo::new(
        MODEL,
        files.map(|name| (name, fixture(&format!("tiny-llama/{name}")))),
    );
    repo.files
        .insert("README.md".into(), b"# not needed".to_vec());
    repo
}

fn coqa() -> Repo {
    Repo::new(
        &format!("datasets/{DATASET}"),
        [
            ("README.md", b"# CoQA".to_vec()),
            ("data/train-00000-of-00001.parquet", b"PAR1".to_vec()),
            (
                "data/validation-00000-of-00001.parquet",
                fixture("parquet/datasets.parquet"),
            ),
        ],
    )
}

/// A small repository of which the third file lies on the second host.
fn small() -> Repo {
    let weights: Vec<u8> = (0..300_000_u32).map(|i| ((i * 7919) >> 5) as u8).collect();
    Repo::new(
        MODEL,
        [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"a\": 1}".to_vec()),
            ("model.safetensors", weights),
        ],
    )
}

const WEIGHTS: &str = "model.safetensors";

/// Settings for a cache in `dir`, impatient.
fn settings(dir: &Path, hub: &Hub) -> Settings {
    Settings {
        endpoint: hub.first.address(),
        token: Some(Token::new(TOKEN, "HF_TOKEN").expect("a token")),
        answer_timeout: Duration::from_millis(400),
        read_timeout: Duration::from_millis(400),
        attempts: 3,
        first_wait: Duration::from_millis(5),
        lock_wait: Duration::from_millis(300),
        ..Settings::new(dir.join("cache"))
    }
}

fn id(text: &str) -> Id {
    text.parse().expect("an id")
}

fn bar() -> ProgressBar {
    ProgressBar::hidden()
}

fn get(settings: &Settings, text: &str) -> llama_quant::Result<PathBuf> {
    let located = Client::new(settings.clone())?.model(&id(text), &bar())?;
    assert_eq!(located.name, text.split('@').next().expect("a name"));
    assert_eq!(located.revision.as_deref(), Some(COMMIT));
    Ok(located.path)
}

/// The four parts of a refusal by the hub's door.
#[track_caller]
fn refused<T>(result: llama_quant::Result<T>) -> Mismatch {
    match result {
        Ok(_) => panic!("accepted"),
        Err(Error::Hub(why)) => {
            assert!(!why.to_string().contains(TOKEN), "{why}");
            assert!(!why.to_string().contains(SIGNATURE), "{why}");
            assert!(!why.to_string().contains('\n'), "{why}");
            why
        }
        Err(other) => panic!("not a refusal of the hub: {other}"),
    }
}

/// Everything below `dir` that is not a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn repo_folder(dir: &Path) -> PathBuf {
    dir.join("cache/models--some-org--tiny-llama")
}

/// The program in an environment of its own.
fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-quant"));
    command.current_dir(dir).env_clear();
    command.env("HOME", dir).env("PATH", "/usr/bin:/bin");
    command
        .env("HF_HUB_ETAG_TIMEOUT", "2")
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "2");
    command
}

/// Both streams of an output, which must not hold a secret.
#[track_caller]
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    for secret in [TOKEN, SIGNATURE, "panicked"] {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }
    text
}

// ---- What works ------------------------------------------------------------------

#[test]
fn a_model_and_a_data_set_of_the_hub_are_fetched_compared_and_need_no_network_then() {
    let (model, data) = (tiny_llama(), coqa());
    let hub = Hub::with_faults(&model, move |request, second, answer| {
        let is_data = request.path.contains("/datasets/");
        (is_data && !second)
            .then(|| data.answer(request, "http://127.0.0.1:9"))
            .or(Some(answer))
    });
    let dir = folder();
    let fetch = program(dir.path())
        .args(["fetch", "--model", MODEL, "--dataset", "hub"])
        .env("HF_ENDPOINT", hub.first.address() + "/")
        .env("HF_TOKEN", TOKEN)
        .output()
        .expect("the program starts");
    let text = said(&fetch);
    assert!(fetch.status.success(), "{text}");
    let cache = dir.path().join(".cache/huggingface/hub");
    let cache = cache.canonicalize().expect("the standard place");
    for part in [
        &format!("{MODEL}@{COMMIT}"),
        &format!("{DATASET}@{COMMIT}"),
        "3 files, ",
        &format!("export HF_HUB_CACHE={}", cache.display()),
        "export HF_HUB_OFFLINE=1",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_eq!(
        hub.first.count("GET", "README"),
        0,
        "only what is read is fetched"
    );
    assert_eq!(
        hub.first.count("GET", "train"),
        0,
        "only what is read is fetched"
    );

    // The command that `fetch` prints, with no hub to ask.
    let command = text
        .lines()
        .find(|line| line.starts_with("llama-quant compare"));
    let command = command.expect("a command to copy").split(' ').skip(1);
    let asked = hub.first.seen().len();
    let compare = program(dir.path())
        .args(command)
        .args([
            "--limit",
            "2",
            "--experiment",
            "fp16_baseline",
            "--out",
            "records",
        ])
        .env("HF_ENDPOINT", hub.first.address())
        .env("HF_HUB_CACHE", &cache)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("the program starts");
    let text = said(&compare);
    assert!(compare.status.success(), "{text}");
    assert_eq!(hub.first.seen().len(), asked, "nothing is asked");
    let record = files(&dir.path().join("records")).pop().expect("a record");
    let record = Record::open(&record).expect("a whole record");
    let names: Vec<&String> = record.head.setup.model.files.keys().collect();
    assert_eq!(
        names,
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(record.items.len(), 2);
    // Weights and stories are those of the project, so the answers are too.
    let own = program(dir.path())
        .args([
            "compare",
            "--limit",
            "2",
            "--experiment",
            "fp16_baseline",
            "--out",
            "own",
        ])
        .output()
        .expect("the program starts");
    assert!(own.status.success(), "{}", said(&own));
    let own = files(&dir.path().join("own")).pop().expect("a record");
    assert_eq!(
        Record::open(&own).expect("a whole record").items,
        record.items
    );
}

#[test]
fn the_size_of_a_model_of_the_hub_needs_its_configuration_alone() {
    let (hub, dir) = (Hub::start(&tiny_llama()), folder());
    let size = |arguments: &[&str], offline: &str| {
        let mut command = program(dir.path());
        command.arg("size").args(arguments);
        command
            .env("HF_ENDPOINT", hub.first.address())
            .env("HF_HUB_OFFLINE", offline);
        let output = command.output().expect("the program starts");
        let text = said(&output);
        assert!(output.status.success(), "{text}");
        text
    };
    let own = size(&[], "1");
    assert!(own.contains("bnb_4bit_nf4"), "{own}");
    assert_eq!(size(&["--model", MODEL], "0"), own);
    assert_eq!(hub.first.count("GET", "config.json"), 1);
    for name in ["tokenizer.json", WEIGHTS] {
        assert_eq!(hub.first.count("HEAD", name), 0, "{name}");
        assert_eq!(hub.first.count("GET", name), 0, "{name}");
    }
    // The cache has it now, and what else the model has is fetched when it is read.
    assert_eq!(size(&["--model", MODEL], "1"), own);
    let cache = settings(&dir.path().join("none"), &hub);
    let cache = Settings {
        cache: dir.path().join(".cache/huggingface/hub"),
        ..cache
    };
    let model = get(&cache, MODEL).expect("a model");
    assert!(model.join(WEIGHTS).is_file());
    assert_eq!(hub.first.count("GET", "config.json"), 1);
}

#[test]
fn the_speed_of_random_weights_in_the_shape_of_a_model_needs_its_configuration_alone() {
    let (hub, dir) = (Hub::start(&tiny_llama()), folder());
    let mut command = program(dir.path());
    let options = "bench --weights random --energy 0 --device cpu --experiment bnb_4bit_nf4";
    command.args(options.split_whitespace());
    command.args(["--out", "records", "--model", MODEL]);
    let output = command.env("HF_ENDPOINT", hub.first.address()).output();
    let output = output.expect("the program starts");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(hub.first.count("GET", "config.json"), 1);
    for name in ["tokenizer.json", WEIGHTS] {
        assert_eq!(hub.first.count("HEAD", name), 0, "{name}");
        assert_eq!(hub.first.count("GET", name), 0, "{name}");
    }
    let path = files(&dir.path().join("records")).pop().expect("a record");
    let bench = Bench::open(&path).expect("a whole record");
    assert_eq!(bench.head.setup.model.name, MODEL);
    assert_eq!(bench.head.setup.model.revision.as_deref(), Some(COMMIT));
}

#[test]
fn the_cache_has_the_layout_that_all_tools_of_the_hub_share() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let snapshot = get(&settings(dir.path(), &hub), MODEL).expect("a model");
    let root = repo_folder(dir.path());
    assert_eq!(snapshot, root.join("snapshots").join(COMMIT));
    assert_eq!(
        fs::read_to_string(root.join("refs/main")).expect("a ref"),
        COMMIT
    );
    for (name, bytes) in &small().files {
        let sum = if bytes.len() < 100_000 {
            git_sum(bytes)
        } else {
            sha256(bytes)
        };
        assert_eq!(
            fs::read(root.join("blobs").join(&sum)).expect("a blob"),
            *bytes
        );
        let link = fs::read_link(snapshot.join(name)).expect("a link");
        assert_eq!(link, Path::new("../../blobs").join(&sum));
    }
    assert_eq!(files(&root).len(), 3 + 3 + 1, "{:?}", files(&root));
}

#[test]
fn the_token_goes_to_the_endpoint_and_to_no_second_host() {
    let (hub, dir) = (Hub::start(&small()), folder());
    get(&settings(dir.path(), &hub), MODEL).expect("a model");
    let bearer = format!("Bearer {TOKEN}");
    assert!(hub.first.seen().len() >= 4);
    for request in hub.first.seen() {
        assert_eq!(request.token(), Some(bearer.as_str()), "{request:?}");
    }
    assert_eq!(hub.second.count("GET", WEIGHTS), 1);
    for request in hub.second.seen() {
        assert_eq!(request.token(), None, "{request:?}");
        assert!(!format!("{request:?}").contains(TOKEN), "{request:?}");
    }
}

#[test]
fn a_redirect_on_the_same_host_is_followed_with_the_token() {
    // As the hub does for a repository that was renamed.
    let mut repo = small();
    repo.path = "some-org/new-name".into();
    let hub = Hub::with_faults(&repo, |request, second, _| {
        let moved = request.path.replace(MODEL, "some-org/new-name");
        (!second && moved != request.path).then(|| Answer::new(307, "").with("location", moved))
    });
    let dir = folder();
    get(&settings(dir.path(), &hub), MODEL).expect("a model");
    let moved: Vec<Request> = hub.first.seen();
    assert!(
        moved
            .iter()
            .any(|r| r.path.contains("new-name") && r.token().is_some())
    );
}

#[test]
fn a_sharded_model_is_fetched_by_its_index() {
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let index = json!({ "weight_map": { "a": shards[0], "b": shards[1], "c": shards[0] } });
    let mut repo = small();
    repo.files.remove(WEIGHTS);
    repo.files.insert(
        "model.safetensors.index.json".into(),
        index.to_string().into(),
    );
    for shard in shards {
        repo.files.insert(shard.into(), vec![7; 120_000]);
    }
    repo.files
        .insert("consolidated.safetensors".into(), vec![1; 10]);
    let (hub, dir) = (Hub::start(&repo), folder());
    let snapshot = get(&settings(dir.path(), &hub), MODEL).expect("a model");
    for shard in shards {
        assert_eq!(
            fs::read(snapshot.join(shard)).expect("a shard").len(),
            120_000
        );
    }
    assert!(!snapshot.join("consolidated.safetensors").exists());
    // Two shards of one content are one blob, downloaded once.
    assert_eq!(hub.second.seen().len(), 1);
}

#[test]
fn a_commit_that_is_in_the_cache_is_not_asked_for_and_a_branch_is() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let settings = settings(dir.path(), &hub);
    get(&settings, MODEL).expect("a model");
    let asked = hub.first.seen().len();
    get(&settings, &format!("{MODEL}@{COMMIT}")).expect("a model");
    assert_eq!(hub.first.seen().len(), asked);
    get(&settings, MODEL).expect("a model");
    assert_eq!(hub.first.seen().len(), asked + 1, "what main is now");
}

#[test]
fn a_branch_that_moved_is_fetched_anew_beside_the_old_commit() {
    let dir = folder();
    let hub = Hub::start(&small());
    get(&settings(dir.path(), &hub), MODEL).expect("a model");
    let mut repo = small();
    repo.commit = "f".repeat(40);
    repo.files
        .insert("config.json".into(), b"{\"new\": 1}".to_vec());
    let hub = Hub::start(&repo);
    let client = Client::new(settings(dir.path(), &hub)).expect("a client");
    let located = client.model(&id(MODEL), &bar()).expect("a model");
    assert_eq!(located.revision.as_deref(), Some(repo.commit.as_str()));
    assert_eq!(
        fs::read(located.path.join("config.json")).expect("a file"),
        b"{\"new\": 1}"
    );
    assert_eq!(hub.second.seen().len(), 0, "the weights are there already");
    let old = repo_folder(dir.path()).join("snapshots").join(COMMIT);
    assert_eq!(fs::read(old.join("config.json")).expect("a file"), b"{}");
}

// ---- Broken downloads ----------------------------------------------------------

#[test]
fn a_download_that_breaks_off_is_continued_where_it_stopped() {
    let hub = Hub::with_faults(&small(), |request, second, mut answer| {
        answer.cut = (request.earlier < 2).then_some(100_000);
        second.then_some(answer)
    });
    let dir = folder();
    let snapshot = get(&settings(dir.path(), &hub), MODEL).expect("a model");
    let whole = &small().files[WEIGHTS];
    assert_eq!(
        fs::read(snapshot.join(WEIGHTS)).expect("the weights"),
        *whole
    );
    let starts: Vec<usize> = hub.second.seen().iter().map(Request::from).collect();
    assert_eq!(starts, [0, 100_000, 200_000]);
}

#[test]
fn a_download_that_was_killed_is_continued_by_the_next_run() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let whole = &small().files[WEIGHTS];
    let blobs = repo_folder(dir.path()).join("blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    let part = blobs.join(sha256(whole) + ".incomplete");
    fs::write(&part, &whole[..123_456]).expect("half a file");
    let snapshot = get(&settings(dir.path(), &hub), MODEL).expect("a model");
    assert_eq!(
        fs::read(snapshot.join(WEIGHTS)).expect("the weights"),
        *whole
    );
    assert_eq!(hub.second.seen()[0].from(), 123_456);
    assert!(!part.exists());
}

#[rstest]
#[case::other_bytes(vec![0; 1000])]
#[case::more_bytes_than_the_file_has(vec![0; 400_000])]
#[case::all_bytes_and_wrong_ones(vec![0; 300_000])]
#[case::nothing(vec![])]
fn a_part_that_does_not_belong_to_the_file_is_thrown_away(#[case] part: Vec<u8>) {
    let (hub, dir) = (Hub::start(&small()), folder());
    let whole = &small().files[WEIGHTS];
    let blobs = repo_folder(dir.path()).join("blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    fs::write(blobs.join(sha256(whole) + ".incomplete"), part).expect("a part");
    let snapshot = get(&settings(dir.path(), &hub), MODEL).expect("a model");
    assert_eq!(
        fs::read(snapshot.join(WEIGHTS)).expect("the weights"),
        *whole
    );
}

#[rstest]
#[case::knows_no_ranges(200, None)]
#[case::sends_another_range(206, Some("bytes 7-299999/300000"))]
#[case::refuses_the_range(416, None)]
fn a_server_that_does_not_continue_is_read_from_the_start(
    #[case] status: u16,
    #[case] range: Option<&'static str>,
) {
    let whole = small().files[WEIGHTS].clone();
    let sent = whole.clone();
    let hub = Hub::with_faults(&small(), move |request, second, answer| {
        if !second || request.from() == 0 {
            return None;
        }
        Some(match (status, range) {
            (200, _) => Answer::new(200, sent.clone()),
            (_, Some(range)) => Answer::new(206, &sent[7..]).with("content-range", range),
            _ => Answer { status, ..answer },
        })
    });
    let dir = folder();
    let blobs = repo_folder(dir.path()).join("blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    fs::write(blobs.join(sha256(&whole) + ".incomplete"), &whole[..5000]).expect("a part");
    let snapshot = get(&settings(dir.path(), &hub), MODEL).expect("a model");
    assert_eq!(
        fs::read(snapshot.join(WEIGHTS)).expect("the weights"),
        whole
    );
}

#[rstest]
#[case::always_cut(|mut a: Answer| { a.cut = Some(10); a }, "an end after", 3)]
#[case::shorter_than_stated(
    |a: Answer| { let n = a.body.len(); Answer::new(200, &a.body[..n - 1]) },
    "299999 bytes announced", 1
)]
#[case::longer_than_stated(
    |a: Answer| Answer::new(200, [&a.body[..], &[1; 9]].concat()),
    "300009 bytes announced", 1
)]
#[case::other_content(
    |a: Answer| Answer::new(200, vec![9; a.body.len()]),
    "content with", 1
)]
fn a_file_that_is_not_what_the_hub_states_never_enters_the_cache(
    #[case] damage: fn(Answer) -> Answer,
    #[case] found: &str,
    #[case] requests: usize,
) {
    let hub = Hub::with_faults(&small(), move |_, second, answer| {
        second.then(|| damage(answer))
    });
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    // A connection that ends early is reported as that or as a short file.
    let cut = found == "an end after" && why.found.contains("broken connection");
    assert!(why.found.contains(found) || cut, "{why}");
    assert!(why.thing.contains(WEIGHTS), "{why}");
    assert_eq!(hub.second.count("GET", WEIGHTS), requests);
    let snapshot = repo_folder(dir.path()).join("snapshots").join(COMMIT);
    assert!(!snapshot.join(WEIGHTS).exists());
    let sum = sha256(&small().files[WEIGHTS]);
    assert!(!repo_folder(dir.path()).join("blobs").join(sum).exists());
}

#[test]
fn a_small_file_is_held_against_gits_checksum() {
    let hub = Hub::with_faults(&small(), |request, second, answer| {
        let damaged = Answer {
            body: b"{ }".to_vec(),
            ..answer.clone()
        };
        let same_size = Answer {
            body: b"[]".to_vec(),
            ..answer
        };
        match request.is("GET", "config.json") && !second {
            true if request.earlier == 0 => Some(same_size),
            true => Some(damaged),
            false => None,
        }
    });
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        why.wanted.contains(&git_sum(b"{}")) && why.found.contains(&git_sum(b"[]")),
        "{why}"
    );
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.wanted.contains("2 bytes as the hub states"), "{why}");
}

#[rstest]
#[case::none("etag", "", "no checksum")]
#[case::of_another_kind("etag", "\"abc\"", "the etag \"abc\"")]
#[case::that_is_a_path("etag", "\"../../../../x\"", "the etag")]
#[case::in_capitals("etag", "\"ABCDEF0123456789ABCDEF0123456789ABCDEF01\"", "the etag")]
#[case::of_another_commit("x-repo-commit", "ffff", "that of ffff")]
fn a_file_that_cannot_be_checked_is_refused(
    #[case] header: &'static str,
    #[case] value: &'static str,
    #[case] found: &str,
) {
    let hub = Hub::with_faults(&small(), move |request, second, answer| {
        let answer = match value {
            "" => answer.without(header),
            _ => answer.with(header, value),
        };
        (request.is("HEAD", "config.json") && !second).then_some(answer)
    });
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        why.found.contains(found) && why.remedy.contains("mirror"),
        "{why}"
    );
    assert_eq!(files(&dir.path().join("cache")), [] as [PathBuf; 0]);
}

// ---- Passing failures ----------------------------------------------------------

#[rstest]
fn a_failure_that_passes_is_waited_out(#[values(429, 500, 502, 503, 504, 408)] status: u16) {
    let hub = Hub::with_faults(&small(), move |request, _, _| {
        (request.earlier < 2).then(|| Answer::new(status, "busy"))
    });
    let dir = folder();
    // The weights fail twice on each host.
    let settings = Settings {
        attempts: 5,
        ..settings(dir.path(), &hub)
    };
    get(&settings, MODEL).expect("a model after some attempts");
    assert_eq!(hub.first.count("GET", "/api/"), 3);
    assert_eq!(hub.second.seen().len(), 3);
}

#[test]
fn a_redirect_whose_signature_is_too_old_is_asked_for_anew() {
    let hub = Hub::with_faults(&small(), |request, second, _| {
        (second && request.earlier < 1).then(|| Answer::new(403, "<Code>AccessDenied</Code>"))
    });
    let dir = folder();
    get(&settings(dir.path(), &hub), MODEL).expect("a model");
    assert_eq!(hub.first.count("GET", WEIGHTS), 2);
    let hub = Hub::with_faults(&small(), |_, second, _| {
        second.then(|| Answer::new(403, ""))
    });
    let why = refused(get(&settings(folder().path(), &hub), MODEL));
    assert!(why.found.contains("403 Forbidden from 127.0.0.1"), "{why}");
    assert!(!why.to_string().contains("licence"), "{why}");
}

#[rstest]
#[case::too_many(429, "429", "run fewer jobs")]
#[case::broken(503, "503", "try again later")]
fn a_failure_that_does_not_pass_ends_clearly(
    #[case] status: u16,
    #[case] found: &str,
    #[case] remedy: &str,
) {
    let hub = Hub::with_faults(&small(), move |_, _, _| Some(Answer::new(status, "no")));
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        why.found.contains(found) && why.found.contains("3 times"),
        "{why}"
    );
    assert!(why.remedy.contains(remedy), "{why}");
    assert_eq!(hub.first.seen().len(), 3);
}

#[test]
fn the_wait_that_the_hub_asks_for_is_kept() {
    let hub = Hub::with_faults(&small(), |request, _, _| {
        (request.is("GET", "/api/") && request.earlier == 0)
            .then(|| Answer::new(429, "").with("retry-after", "1"))
    });
    let dir = folder();
    let start = Instant::now();
    get(&settings(dir.path(), &hub), MODEL).expect("a model");
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[rstest]
#[case::in_seconds("100000", "100000 s")]
#[case::as_a_date("Fri, 01 Jan 2100 00:00:00 GMT", "asks to wait")]
fn a_wait_that_is_too_long_is_an_end(#[case] wait: &'static str, #[case] found: &str) {
    let hub = Hub::with_faults(&small(), move |_, _, _| {
        Some(Answer::new(429, "").with("retry-after", wait))
    });
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.found.contains(found), "{why}");
    assert_eq!(hub.first.seen().len(), 1);
}

#[rstest]
#[case::no_answer("/api/", false, "HF_HUB_ETAG_TIMEOUT")]
#[case::half_a_file(WEIGHTS, true, "HF_HUB_DOWNLOAD_TIMEOUT")]
fn a_server_that_hangs_is_given_up_and_the_limit_is_named(
    #[case] part: &'static str,
    #[case] second_host: bool,
    #[case] variable: &str,
) {
    let hub = Hub::with_faults(&small(), move |request, second, mut answer| {
        if second {
            answer.stall = Some(1000);
        } else {
            answer.delay = NEVER;
        }
        (second == second_host && request.is("GET", part)).then_some(answer)
    });
    let dir = folder();
    let start = Instant::now();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(why.found.contains("nothing for 0.4 s, 3 times"), "{why}");
    assert!(why.remedy.contains(variable), "{why}");
}

// ---- Refusals ------------------------------------------------------------------

#[rstest]
#[case::no_token(401, "RepoNotFound", false, &["401", "HF_TOKEN", "/settings/tokens", "check the name"])]
#[case::a_bad_token(401, "", true, &["401", "the token in HF_TOKEN", "still valid"])]
#[case::gated_without_a_token(401, "GatedRepo", false, &["accept the licence at", "some-org/tiny-llama", "HF_TOKEN"])]
#[case::gated(403, "GatedRepo", true, &["403", "accept the licence at", "some-org/tiny-llama", "the token in HF_TOKEN"])]
#[case::forbidden(403, "", true, &["403", "fine-grained"])]
#[case::no_such_repository(404, "RepoNotFound", true, &["404", "check the name at", "some-org/tiny-llama"])]
#[case::a_teapot(418, "", true, &["418", "HF_ENDPOINT"])]
fn a_refusal_of_the_hub_says_what_to_do(
    #[case] status: u16,
    #[case] code: &'static str,
    #[case] token: bool,
    #[case] wanted: &[&str],
) {
    let hub = Hub::with_faults(&small(), move |request, _, _| {
        let message = format!("no,\u{7}{}", request.token().unwrap_or("nobody"));
        let answer = Answer::new(status, "").with("x-error-code", code);
        Some(answer.with("x-error-message", message.replace('\u{7}', "\t")))
    });
    let dir = folder();
    let mut settings = settings(dir.path(), &hub);
    if !token {
        settings.token = None;
    }
    let why = refused(get(&settings, MODEL));
    for part in wanted {
        assert!(why.to_string().contains(part), "{part:?} in {why}");
    }
    assert!(why.found.contains("no,"), "what the hub says: {why}");
    assert_eq!(hub.first.seen().len(), 1, "asked once");
}

#[test]
fn a_revision_that_is_not_there_is_answered_with_near_names() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let why = refused(get(
        &settings(dir.path(), &hub),
        &format!("{MODEL}@flaot16"),
    ));
    assert!(
        why.thing.ends_with("@flaot16") && why.remedy.contains("float16"),
        "{why}"
    );
}

#[rstest]
#[case::the_tokenizer("tokenizer.json", "tokenizer.model", "older format")]
#[case::the_weights(WEIGHTS, "pytorch_model.bin", "pickle")]
#[case::the_configuration("config.json", "params.json", "as transformers saves it")]
fn a_file_that_is_not_there_is_answered_with_near_names(
    #[case] file: &str,
    #[case] instead: &str,
    #[case] remedy: &str,
) {
    let mut repo = small();
    repo.files.remove(file);
    repo.files.insert(instead.into(), vec![1]);
    let (hub, dir) = (Hub::start(&repo), folder());
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        why.wanted.contains(file) && why.found.contains(instead),
        "{why}"
    );
    assert!(why.remedy.contains(remedy), "{why}");
}

#[rstest]
#[case::that_is_no_json("<html>", "expected value")]
#[case::that_is_cut("{\"sha\": \"01", "EOF")]
#[case::without_a_commit("{\"siblings\": []}", "sha")]
#[case::with_a_commit_that_is_a_path(
    "{\"sha\": \"../../../../../../../../../../x\", \"siblings\": []}",
    "the commit"
)]
#[case::without_files(
    "{\"sha\": \"0123456789abcdef0123456789abcdef01234567\", \"siblings\": []}",
    "no files at all"
)]
fn an_answer_that_makes_no_sense_is_refused(#[case] body: &'static str, #[case] found: &str) {
    let hub = Hub::with_faults(&small(), move |_, _, _| Some(Answer::new(200, body)));
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.found.contains(found), "{why}");
    assert_eq!(files(dir.path()), [] as [PathBuf; 0]);
}

#[rstest]
#[case::without_end("/again")]
#[case::to_a_file("file:///etc/passwd")]
#[case::to_nothing("")]
#[case::to_another_scheme("ftp://127.0.0.1/x")]
fn redirects_that_lead_nowhere_are_refused(#[case] location: &'static str) {
    let hub = Hub::with_faults(&small(), move |_, _, _| {
        let location = format!("{location}?token={TOKEN}").replace("/again?", "/again?a=1&");
        let answer = Answer::new(302, "");
        Some(if location.starts_with('?') {
            answer
        } else {
            answer.with("location", location)
        })
    });
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.wanted.contains("redirect"), "{why}");
    assert!(hub.first.seen().len() < 12);
}

#[test]
fn what_cannot_be_reached_is_named_with_the_way_to_it() {
    let dir = folder();
    let run = |endpoint: &str, variable: &str, value: &str| {
        let output = program(dir.path())
            .args(["fetch", "--retries", "0", "--model", MODEL])
            .env("HF_ENDPOINT", endpoint)
            .env(variable, value)
            .output()
            .expect("the program starts");
        assert!(!output.status.success());
        said(&output)
    };
    let nowhere = "http://127.0.0.1:1";
    let text = run(nowhere, "X", "x");
    assert!(
        text.contains("127.0.0.1") && text.contains("HF_HUB_OFFLINE=1"),
        "{text}"
    );
    let text = run("http://no-such-host.invalid", "X", "x");
    assert!(
        text.contains("no-such-host.invalid, found no such host"),
        "{text}"
    );
    // The password of a proxy is a secret too.
    let text = run(
        "http://hub.invalid",
        "HTTP_PROXY",
        "http://me:hunter2@127.0.0.1:1",
    );
    assert!(
        text.contains("through the proxy 127.0.0.1:1") && text.contains("NO_PROXY"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    let text = run(nowhere, "HTTPS_PROXY", "::hunter2::");
    assert!(
        text.contains("HTTPS_PROXY") && !text.contains("hunter2"),
        "{text}"
    );
    // Whoever listens there speaks no TLS.
    let hub = Hub::start(&small());
    let text = run(&hub.first.address().replace("http:", "https:"), "X", "x");
    assert!(
        text.contains("a TLS error") && text.contains("SSL_CERT_FILE"),
        "{text}"
    );
    let text = run(nowhere, "SSL_CERT_FILE", "/etc/hostname");
    assert!(text.contains("certificates in PEM"), "{text}");
    let text = run(nowhere, "SSL_CERT_FILE", "nowhere.pem");
    assert!(text.contains("nowhere.pem"), "{text}");
}

#[rstest]
#[case("HF_ENDPOINT", "https://user:SECRET@huggingface.co")]
#[case("HF_ENDPOINT", "https://huggingface.co?token=SECRET")]
#[case("HF_ENDPOINT", "ftp://huggingface.co/SECRET")]
#[case("HF_ENDPOINT", "SECRET")]
#[case("HF_TOKEN", "SECRET with a blank")]
#[case("HF_TOKEN", "SECRÉT")]
#[case("HF_HUB_OFFLINE", "perhaps")]
#[case("HF_HUB_ETAG_TIMEOUT", "-1")]
#[case("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]
fn a_variable_that_means_nothing_is_refused_by_name(#[case] name: &str, #[case] value: &str) {
    let dir = folder();
    let output = program(dir.path())
        .args(["fetch", "--model", MODEL])
        .env(name, value)
        .output()
        .expect("the program starts");
    let text = said(&output);
    assert!(!output.status.success() && text.contains(name), "{text}");
    assert!(!text.contains("SECR"), "{text}");
}

#[test]
fn the_token_is_found_where_the_tools_of_the_hub_put_it() {
    let dir = folder();
    let hub = Hub::start(&small());
    fs::create_dir_all(dir.path().join("home")).expect("a folder");
    fs::write(dir.path().join("home/token"), "hf_home\n").expect("a file");
    fs::write(dir.path().join("elsewhere"), "hf_path").expect("a file");
    let token = |variables: &[(&str, &str)]| {
        let before = hub.first.seen().len();
        let output = program(dir.path())
            .args(["fetch", "--model", MODEL])
            .env("HF_ENDPOINT", hub.first.address())
            .envs(variables.iter().copied())
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", said(&output));
        hub.first.seen()[before].token().map(str::to_owned)
    };
    let home = ("HF_HOME", "home");
    assert_eq!(token(&[]), None);
    assert_eq!(token(&[home]).as_deref(), Some("Bearer hf_home"));
    let file = ("HF_TOKEN_PATH", "elsewhere");
    assert_eq!(token(&[home, file]).as_deref(), Some("Bearer hf_path"));
    let own = ("HF_TOKEN", "hf_own");
    assert_eq!(token(&[home, file, own]).as_deref(), Some("Bearer hf_own"));
    assert_eq!(
        token(&[home, ("HF_TOKEN", "")]).as_deref(),
        Some("Bearer hf_home")
    );
    assert!(
        dir.path()
            .join("home/hub/models--some-org--tiny-llama")
            .is_dir()
    );
}

#[rstest]
#[case::that_works(200)]
#[case::that_refuses(403)]
#[case::that_fails(500)]
fn the_token_and_signatures_are_in_no_log(#[case] status: u16) {
    let hub = Hub::with_faults(&small(), move |request, second, answer| match status {
        200 => None,
        _ if second => {
            let message = request.path.clone() + TOKEN;
            Some(Answer { status, ..answer }.with("x-error-message", message))
        }
        _ if request.is("GET", WEIGHTS) => {
            let location = answer.headers.iter().find(|(name, _)| name == "location");
            let (_, location) = location.expect("a redirect");
            let location = format!("{location}&token={TOKEN}");
            Some(answer.with("location", location))
        }
        _ => None,
    });
    let dir = folder();
    let output = program(dir.path())
        .args(["fetch", "--retries", "1", "--model", MODEL])
        .env("HF_ENDPOINT", hub.first.address())
        .env("HF_TOKEN", TOKEN)
        .env(
            "RUST_LOG",
            "trace,ureq=trace,ureq_proto=trace,hf_hub=trace,rustls=trace",
        )
        .env("RUST_BACKTRACE", "full")
        .output()
        .expect("the program starts");
    assert_eq!(output.status.success(), status == 200);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(
        text.contains("DEBUG") && text.contains("resolve"),
        "a log\n{text}"
    );
    assert!(!text.contains(TOKEN), "{text}");
    assert!(!text.contains(SIGNATURE), "{text}");
}

#[test]
fn a_token_shows_where_it_comes_from_and_nothing_else() {
    let token = Token::new(TOKEN, "HF_TOKEN").expect("a token");
    let settings = Settings {
        token: Some(token),
        ..Settings::new(PathBuf::from("cache"))
    };
    let shown = format!("{settings:?} {settings:#?}");
    assert!(
        shown.contains("Token from HF_TOKEN") && !shown.contains("hf_"),
        "{shown}"
    );
}

// ---- Without network -----------------------------------------------------------

#[test]
fn offline_nothing_is_asked_and_what_is_missing_is_named() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let online = settings(dir.path(), &hub);
    let offline = Settings {
        offline: true,
        ..online.clone()
    };
    let why = refused(get(&offline, MODEL));
    assert!(
        why.found.contains("nothing of it") && why.remedy.contains("fetch --model"),
        "{why}"
    );
    get(&online, MODEL).expect("a model");
    let asked = hub.first.seen().len();
    get(&offline, MODEL).expect("a model");
    get(&offline, &format!("{MODEL}@{COMMIT}")).expect("a model");
    let why = refused(get(&offline, &format!("{MODEL}@other")));
    assert!(why.found.contains(COMMIT), "{why}");
    let link = repo_folder(dir.path())
        .join("snapshots")
        .join(COMMIT)
        .join(WEIGHTS);
    fs::remove_file(link).expect("a link");
    let why = refused(get(&offline, MODEL));
    assert!(why.wanted.contains(WEIGHTS), "{why}");
    assert_eq!(hub.first.seen().len(), asked);
}

#[test]
fn a_hub_that_does_not_answer_is_replaced_by_the_cache() {
    let dir = folder();
    let hub = Hub::start(&small());
    get(&settings(dir.path(), &hub), MODEL).expect("a model");
    for status in [500, 429] {
        let hub = Hub::with_faults(&small(), move |_, _, _| Some(Answer::new(status, "")));
        get(&settings(dir.path(), &hub), MODEL).expect("the model of the cache");
    }
    let nowhere = Settings {
        endpoint: "http://no-such-host.invalid".into(),
        ..settings(dir.path(), &hub)
    };
    get(&nowhere, MODEL).expect("the model of the cache");
    // A refusal is an answer.
    let hub = Hub::with_faults(&small(), |_, _, _| Some(Answer::new(403, "")));
    refused(get(&settings(dir.path(), &hub), MODEL));
}

#[test]
fn fetch_finds_damage_in_the_cache_and_mends_it() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let settings = settings(dir.path(), &hub);
    let snapshot = get(&settings, MODEL).expect("a model");
    let blob = snapshot.join(WEIGHTS).canonicalize().expect("a blob");
    let mut damaged = fs::read(&blob).expect("the weights");
    damaged[77] ^= 1;
    fs::write(&blob, &damaged).expect("damage");
    let verifying = |settings: &Settings| {
        let client = Client::new(settings.clone()).expect("a client").verifying();
        client.model(&id(MODEL), &bar())
    };
    let offline = Settings {
        offline: true,
        ..settings.clone()
    };
    let why = refused(verifying(&offline));
    assert!(
        why.thing.contains(WEIGHTS) && why.wanted.contains("checksum"),
        "{why}"
    );
    verifying(&settings).expect("a model");
    assert_eq!(
        fs::read(&blob).expect("the weights"),
        small().files[WEIGHTS]
    );
    assert_eq!(hub.second.count("GET", WEIGHTS), 2);
}

// ---- The disk ------------------------------------------------------------------

#[test]
fn a_disk_that_is_too_small_is_told_before_the_download() {
    let hub = Hub::with_faults(&small(), |request, _, answer| {
        let large = answer.with("x-linked-size", (1_u64 << 60).to_string());
        request.is("HEAD", WEIGHTS).then_some(large)
    });
    let dir = folder();
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        why.wanted.contains("1152921504606846976 more bytes"),
        "{why}"
    );
    assert!(why.remedy.contains("HF_HUB_CACHE"), "{why}");
    assert_eq!(hub.second.seen().len(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_becomes_full_is_told_with_what_is_still_needed() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let blobs = repo_folder(dir.path()).join("blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    // Every write to this device fails as on a full disk.
    let part = blobs.join(sha256(&small().files[WEIGHTS]) + ".incomplete");
    std::os::unix::fs::symlink("/dev/full", &part).expect("a link");
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.wanted.contains("room for 300000 more bytes"), "{why}");
    assert!(
        why.found.contains("No space left") && why.remedy.contains("free some space"),
        "{why}"
    );
}

#[rstest]
#[case::the_cache("cache")]
#[case::the_repository("cache/models--some-org--tiny-llama")]
#[case::the_blobs("cache/models--some-org--tiny-llama/blobs")]
#[case::the_locks("cache/.locks")]
#[case::the_snapshots("cache/models--some-org--tiny-llama/snapshots")]
#[case::the_refs("cache/models--some-org--tiny-llama/refs")]
fn a_cache_that_cannot_be_written_is_named(#[case] place: &str) {
    let (hub, dir) = (Hub::start(&small()), folder());
    let place = dir.path().join(place);
    fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
    // A file where a folder must go stops every user, the superuser too.
    fs::write(&place, "").expect("a file");
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.thing.contains(&place.display().to_string()), "{why}");
    assert!(why.remedy.contains("HF_HUB_CACHE"), "{why}");
}

#[test]
fn a_lock_that_another_process_holds_is_waited_for_and_then_named() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let sum = sha256(&small().files[WEIGHTS]);
    let locks = dir.path().join("cache/.locks/models--some-org--tiny-llama");
    fs::create_dir_all(&locks).expect("a folder");
    let path = locks.join(sum + ".lock");
    let lock = fs::File::create(&path).expect("a file");
    lock.lock().expect("the lock");
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(why.wanted.contains(&path.display().to_string()), "{why}");
    assert!(why.remedy.contains("wait for that process"), "{why}");
    let patient = Settings {
        lock_wait: Duration::from_secs(20),
        ..settings(dir.path(), &hub)
    };
    let waiting = std::thread::spawn(move || get(&patient, MODEL));
    std::thread::sleep(Duration::from_millis(200));
    lock.unlock().expect("the lock");
    waiting.join().expect("no panic").expect("a model");
}

#[test]
fn processes_that_want_the_same_file_download_it_once() {
    let hub = Hub::with_faults(&small(), |_, second, mut answer| {
        answer.delay = Duration::from_millis(if second { 300 } else { 0 });
        second.then_some(answer)
    });
    let dir = folder();
    let start = || {
        let mut command = program(dir.path());
        command.args(["fetch", "--model", MODEL]);
        command.env("HF_ENDPOINT", hub.first.address());
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command.spawn().expect("the program starts")
    };
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().expect("a child").success());
    }
    assert_eq!(hub.second.count("GET", WEIGHTS), 1);
}

#[test]
fn a_fetch_that_is_killed_leaves_a_part_that_the_next_one_continues() {
    let hub = Hub::with_faults(&small(), |request, second, mut answer| {
        answer.stall = (request.earlier == 0).then_some(200_000);
        second.then_some(answer)
    });
    let dir = folder();
    let fetch = || {
        let mut command = program(dir.path());
        command.args(["fetch", "--model", MODEL]);
        command
            .env("HF_ENDPOINT", hub.first.address())
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "60");
        command
    };
    let mut child = fetch().spawn().expect("the program starts");
    let blobs = dir
        .path()
        .join(".cache/huggingface/hub/models--some-org--tiny-llama/blobs");
    let part = blobs.join(sha256(&small().files[WEIGHTS]) + ".incomplete");
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::metadata(&part).map_or(0, |m| m.len()) < 200_000 {
        assert!(Instant::now() < deadline, "the part does not grow");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("a child to kill");
    child.wait().expect("the child");
    let output = fetch().output().expect("the program starts");
    assert!(output.status.success(), "{}", said(&output));
    let starts: Vec<usize> = hub.second.seen().iter().map(Request::from).collect();
    assert_eq!(starts, [0, 200_000]);
}

// ---- Names that lead elsewhere -------------------------------------------------

#[rstest]
fn names_that_lead_out_of_the_cache_are_refused(
    #[values(
        "../../x",
        "..",
        ".",
        "/etc/passwd",
        "a/../b",
        "../b",
        "a/..",
        "a/b/c",
        "a",
        "",
        "/",
        "a/",
        "/b",
        "a\\b/c",
        "a/b@../../x",
        "a/b@/etc",
        "a/b@",
        "a/b@x/../y",
        "a/b@.git",
        "a/.b",
        "-a/b",
        "a--b/c",
        "a/b@x y",
        "a/b\n",
        "a/b@refs//x",
        "ä/b",
        "a/b%2f..",
        "a/b?x",
        "a/b#x",
        "a:b/c"
    )]
    text: &str,
) {
    let error = text.parse::<Id>().expect_err(text).to_string();
    assert!(error.contains("ORG/NAME"), "{error}");
}

#[rstest]
fn ids_and_revisions_of_the_hub_are_accepted(
    #[values(
        "meta-llama/Llama-3.2-1B",
        "a/b@refs/convert/parquet",
        "a/b@v1.0_rc-2",
        "a_b/c.d",
        "a/b@0123456789abcdef0123456789abcdef01234567"
    )]
    text: &str,
) {
    let id = id(text);
    let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
    assert_eq!((id.name.as_str(), id.revision.as_str()), (name, revision));
}

#[rstest]
#[case::in_an_index("../../../../outside.safetensors")]
#[case::with_a_backslash("..\\outside.safetensors")]
#[case::absolute("/tmp/outside.safetensors")]
fn an_index_of_the_hub_that_leads_out_of_its_folder_is_refused(#[case] name: &str) {
    let index = json!({ "weight_map": { "a": name } }).to_string();
    let mut repo = small();
    repo.files
        .insert("model.safetensors.index.json".into(), index.into());
    repo.files.insert(name.into(), vec![1]);
    let (hub, dir) = (Hub::start(&repo), folder());
    let why = refused(get(&settings(dir.path(), &hub), MODEL));
    assert!(
        why.thing.contains("index.json") && why.remedy.contains("do not use"),
        "{why}"
    );
    assert!(
        files(dir.path())
            .iter()
            .all(|f| !f.to_string_lossy().contains("outside"))
    );
}

#[test]
fn a_file_of_a_data_set_that_leads_out_of_its_folder_is_refused() {
    let mut repo = coqa();
    let validation = repo.files.remove("data/validation-00000-of-00001.parquet");
    let name = "../../../validation.parquet";
    repo.files.insert(name.into(), validation.expect("a file"));
    let (hub, dir) = (Hub::start(&repo), folder());
    let client = Client::new(settings(dir.path(), &hub)).expect("a client");
    let why = refused(client.dataset(&id(DATASET), &bar()));
    assert!(
        why.found.contains(name) && why.remedy.contains("do not use"),
        "{why}"
    );
}

#[rstest]
#[case::no_file(&[], "refs/convert/parquet")]
#[case::several_files(&["validation-0.parquet", "validation-1.parquet"], "join them")]
fn a_data_set_without_its_one_file_is_refused(#[case] names: &[&str], #[case] remedy: &str) {
    let mut repo = coqa();
    repo.files.remove("data/validation-00000-of-00001.parquet");
    for name in names {
        repo.files.insert((*name).into(), vec![1]);
    }
    let (hub, dir) = (Hub::start(&repo), folder());
    let client = Client::new(settings(dir.path(), &hub)).expect("a client");
    let why = refused(client.dataset(&id(DATASET), &bar()));
    assert!(why.remedy.contains(remedy), "{why}");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_cache_that_leads_out_of_it_is_refused() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let settings = settings(dir.path(), &hub);
    let snapshot = get(&settings, MODEL).expect("a model");
    let outside = dir.path().join("outside");
    fs::write(&outside, "{}").expect("a file");
    fs::remove_file(snapshot.join("config.json")).expect("a link");
    std::os::unix::fs::symlink(&outside, snapshot.join("config.json")).expect("a link");
    for offline in [false, true] {
        let settings = Settings {
            offline,
            ..settings.clone()
        };
        let why = refused(get(&settings, MODEL));
        assert!(
            why.found.contains("outside") && why.remedy.contains("delete the link"),
            "{why}"
        );
    }
}

#[test]
fn a_reference_that_is_no_commit_is_refused() {
    let (hub, dir) = (Hub::start(&small()), folder());
    let settings = Settings {
        offline: true,
        ..settings(dir.path(), &hub)
    };
    let refs = repo_folder(dir.path()).join("refs");
    fs::create_dir_all(&refs).expect("a folder");
    fs::write(refs.join("main"), "../../../../etc").expect("a file");
    let why = refused(get(&settings, MODEL));
    assert!(
        why.thing.contains("refs/main") && why.wanted.contains("commit"),
        "{why}"
    );
}

proptest! {
    #[test]
    fn whatever_passes_for_an_id_stays_in_the_cache(text in "[a-zA-Z0-9._/@\\\\ -]{0,24}") {
        if let Ok(id) = text.parse::<Id>() {
            let cache = Path::new("/cache");
            let place = cache.join(format!("models--{}", id.name.replace('/', "--")));
            let reference = place.join("refs").join(&id.revision);
            let plain = reference.components().all(|part| {
                !matches!(part, std::path::Component::ParentDir | std::path::Component::CurDir)
            });
            prop_assert!(plain && reference.starts_with(cache));
        }
    }
}
