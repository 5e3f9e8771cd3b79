//! The report: every number is a finding, every text shows as text, and what is
//! committed agrees with its records.

#[path = "../common/snapshot.rs"]
mod snapshot;

mod hostile;
mod numbers;
mod synthetic;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use llama_quant::coqa::Turns;
use llama_quant::experiment::margin;
use llama_quant::quant::size::MIB;
use llama_quant::record::{Record, Records};
use llama_quant::verdict::report::{File, Findings, files, findings, page};
use llama_quant::verdict::stats::{Plan, Resampling};
use synthetic::{ALL, Recipe, benches, everything, records};

/// What is needed of a report in most tests.
fn judged(recipe: &Recipe) -> Findings {
    findings(&everything(recipe), Resampling::default()).unwrap()
}

fn rendered(recipe: &Recipe) -> Vec<File> {
    files(&everything(recipe)).unwrap()
}

fn evaluations(evaluations: Vec<Record>) -> Records {
    Records {
        evaluations,
        benches: Vec::new(),
    }
}

fn text<'a>(files: &'a [File], path: &str) -> &'a str {
    let file = files.iter().find(|f| f.path == path);
    let file = file.unwrap_or_else(|| panic!("no {path} among the files"));
    std::str::from_utf8(&file.bytes).unwrap()
}

#[test]
fn the_same_records_give_the_same_bytes() {
    let recipe = Recipe::default();
    assert!(rendered(&recipe) == rendered(&recipe));
}

#[test]
fn every_number_of_a_table_is_a_finding_under_the_key_of_its_column() {
    let findings = judged(&Recipe::default());
    let json = serde_json::to_value(&findings).unwrap();
    let page = page::page(&findings).unwrap();
    let scales = [1.0, 100.0, 1e3, 1.0 / MIB, 1e-9, 1e-12];
    let mut checked = 0;
    for table in page.tables() {
        for (i, heading) in table.columns.iter().enumerate() {
            for (j, key) in heading.sources.iter().enumerate() {
                let known = numbers::at(&json, key);
                let shown = table.rows.iter().map(|row| &row[i]).filter(|c| c.numeric);
                for value in shown.map(|cell| &cell.values[j]).filter(|v| !v.is_empty()) {
                    let value: f64 = value.parse().unwrap();
                    let is = |known: f64| (value - known).abs() <= 1e-5 * known.abs();
                    let found = scales.iter().any(|s| known.iter().any(|k| is(k * s)));
                    assert!(found, "{value} in {} is nowhere in {key}", table.name);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 200, "only {checked} numbers were checked");
}

#[test]
fn the_key_of_every_column_is_a_key_of_the_findings() {
    let findings = judged(&Recipe::default());
    let json = serde_json::to_value(&findings).unwrap();
    let page = page::page(&findings).unwrap();
    // Only whole runs of known models have an expected verdict.
    let unknown = ["groups[].entries[].difference.judged.expected"];
    for heading in page.tables().flat_map(|t| &t.columns) {
        for key in heading
            .sources
            .iter()
            .filter(|key| !unknown.contains(&key.as_str()))
        {
            assert!(numbers::exists(&json, key), "nothing at {key}");
        }
    }
}

/// Reports on four sets of records that have no number in common.
fn four_reports() -> Vec<String> {
    let recipe = |seed: u64| Recipe {
        stories: 30 + 10 * seed as usize,
        seed,
        ..Recipe::default()
    };
    let report = |seed| text(&rendered(&recipe(seed)), "REPORT.md").to_owned();
    [1, 2, 3, 4].map(report).to_vec()
}

#[test]
fn no_number_of_the_text_is_typed() {
    let reports = four_reports();
    let resampling = Resampling::default();
    let plan = Plan::default();
    let percent = |share: f64| format!("{:.0}", 100.0 * share);
    let constants = [
        ("95", "the level of intervals, fixed in the judge"),
        (
            "90",
            "the level of the interval that decides, fixed in the judge",
        ),
        ("1", "the number of the only comparison"),
        ("2", "the number of the only chapter of benches"),
        (
            &resampling.resamples.to_string(),
            "the default number of resamples",
        ),
        (&resampling.seed.to_string(), "the default seed"),
        (&percent(plan.power), "the default power"),
        (&percent(plan.alpha), "the default error rate"),
        (
            &percent(margin(Turns::All)),
            "the margin of the experiment table",
        ),
    ];
    let study = judged(&Recipe::default()).study;
    let pairs = study.pairs.len() as f64;
    let published = numbers::leaves(&serde_json::to_value(study).unwrap());
    let is_published = |number: &str| {
        let decimals = number.split_once('.').map_or(0, |(_, d)| d.len());
        let mut known = published.iter().chain([&pairs]);
        known.any(|k| {
            [1.0, 100.0]
                .iter()
                .any(|s| format!("{:.decimals$}", s * k.abs()) == number)
        })
    };
    for (number, sentence) in numbers::the_same_everywhere(&reports) {
        let constant = constants.iter().any(|(known, _reason)| *known == number);
        let of_study = sentence.contains("study") || sentence.contains("Size and speed");
        assert!(
            constant
                || of_study && is_published(&number)
                || sentence.starts_with("## The original"),
            "{number} is the same for all records in: {sentence}"
        );
    }
}

#[test]
fn a_typed_number_would_be_found() {
    let typed = four_reports()
        .into_iter()
        .map(|r| r + "\nNF4 beats FP16 by 8.25 % F1.\n");
    let same = numbers::the_same_everywhere(&typed.collect::<Vec<_>>());
    assert!(same.iter().any(|(number, _)| number == "8.25"), "{same:?}");
    // And the numbers of records are compared at all: these differ.
    let lines = four_reports()[0]
        .lines()
        .map(|l| numbers::in_text(l).len())
        .sum::<usize>();
    assert!(lines > 300, "{lines}");
}

#[test]
fn nothing_is_printed_that_is_not_a_number() {
    for file in rendered(&Recipe::default()) {
        if let Ok(text) = std::str::from_utf8(&file.bytes) {
            for wrong in ["NaN", "inf ", "inf]", "-0.0 ", "-0.0]", "null", "undefined"] {
                assert!(!text.contains(wrong), "{wrong} in {}", file.path);
            }
        }
    }
}

#[test]
fn the_study_is_shown_with_what_it_could_detect_and_with_both_of_its_exact_matches() {
    let files = rendered(&Recipe::default());
    let report = text(&files, "REPORT.md");
    let rows = [
        "| NF4 - FP16 | +5.1 [-11.0, +21.2] | 0.62 | 0.534 | no |",
        "| FP16 | 0.487 | 0.520 | -3.3 |",
        "| NF4 | 0.529 | 0.578 | -4.9 |",
        "| FP4 | 0.448 | 0.450 | -0.2 |",
    ];
    for row in rows {
        assert!(report.contains(row), "no row {row}");
    }
    assert!(report.contains("could detect a difference of 23 points of F1 or more"));
}

#[test]
fn the_page_needs_no_other_file_and_runs_no_script() {
    let files = rendered(&Recipe::default());
    let page = text(&files, "index.html");
    for outside in [
        "<script",
        "<link",
        "<iframe",
        " src=",
        "href=\"http",
        "url(",
        "@import",
    ] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    assert_eq!(
        page.matches("<svg").count(),
        page.matches("<figure>").count()
    );
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn every_figure_is_there_as_svg_and_as_png_of_the_same_shape() {
    let files = rendered(&Recipe::default());
    let svgs: Vec<&File> = files.iter().filter(|f| f.path.ends_with(".svg")).collect();
    // 12 of a comparison, 5 of benches, 1 of the study.
    assert_eq!(svgs.len(), 18);
    for svg in svgs {
        let png = files
            .iter()
            .find(|f| f.path == svg.path.replace(".svg", ".png"))
            .unwrap();
        let side = |at: usize| u32::from_be_bytes(png.bytes[at..at + 4].try_into().unwrap());
        let (width, height) = (side(16), side(20));
        let shown = format!("viewBox=\"0 0 {width} {height}\"");
        let svg = std::str::from_utf8(&svg.bytes).unwrap();
        assert!(svg.contains(&shown), "{} is {width} by {height}", png.path);
    }
}

/// The lines of the chapter or section that starts with `title`, up to the next
/// of its level or above.
fn part<'a>(report: &'a str, title: &str) -> &'a str {
    let start = report
        .find(title)
        .unwrap_or_else(|| panic!("no {title} in the report"));
    let level = title.chars().take_while(|&c| c == '#').count();
    let ends = (1..=level).map(|l| format!("\n{} ", "#".repeat(l)));
    let after = start + title.len();
    let end = ends.filter_map(|end| report[after..].find(&end)).min();
    &report[start..end.map_or(report.len(), |end| after + end)]
}

const SPEED: &str = "### Latency, throughput and the bandwidth limit";

#[test]
fn the_share_of_the_limit_is_the_bytes_of_a_step_over_those_of_the_copy() {
    let recipe = Recipe::default();
    let records = records(&recipe);
    let report = rendered(&recipe);
    let section = part(text(&report, "REPORT.md"), SPEED);
    let record = &records[0];
    let speed = record.samples.speed.as_ref().unwrap();
    let mut seconds = speed.decode[0].seconds.clone();
    seconds.sort_by(f64::total_cmp);
    let median = (seconds[7] + seconds[8]) / 2.0;
    let cache = speed.memory.unwrap().cache_bytes_per_token * speed.decode[0].cached_tokens as u64;
    // The model's head is its embedding, so a step reads all of it.
    let bytes = (record.head.size.with_state + cache) as f64;
    let share = 100.0 * bytes / median / speed.copy_bytes_per_second.unwrap();
    let wanted = format!("| FP16 | {:.3} |", bytes / MIB);
    let row = section.lines().find(|line| line.starts_with(&wanted));
    let row = row.unwrap_or_else(|| panic!("no row {wanted} in\n{section}"));
    assert!(row.contains(&format!("| {share:.1} |")), "{share} in {row}");
}

#[test]
fn benches_have_a_chapter_with_energy_memory_and_the_state_of_the_card() {
    let recipe = Recipe::default();
    let files = rendered(&recipe);
    let report = text(&files, "REPORT.md");
    let title = "## 2. Speed of toy-llama, cuda, random weights&#58; A card";
    let title = title.replace("&#58;", ":");
    let chapter = part(report, &title);
    for heading in [
        "| Format | sequences | J/token | W | window, s |",
        "| Format | weights by formula | weights held | cache | workspace | allocated | peak |",
        "| Format | when | SM clock, MHz | memory clock, MHz | temperature, °C | power, W |",
        "| compute capability |",
    ] {
        assert!(chapter.contains(heading), "no {heading} in\n{chapter}");
    }
    let joules = &benches(&recipe)[0].speed.energy[0];
    let cells = format!("| FP16 | 1 | {:.2} |", joules.joules / joules.tokens as f64);
    assert!(chapter.contains(&cells), "no {cells} in\n{chapter}");
    assert!(!chapter.contains("not measured"), "{chapter}");
    // The comparison's own records are of a CPU and say why they have none.
    let comparison = part(report, SPEED);
    assert!(comparison.contains("Energy was not measured: nobody asked."));
    assert!(!comparison.contains("J/token"));
}

#[test]
fn records_without_speed_say_so_and_have_no_chart_of_it() {
    let mut silent = records(&Recipe::default());
    for record in &mut silent {
        record.samples.speed = None;
    }
    let files = files(&evaluations(silent)).unwrap();
    let section = part(text(&files, "REPORT.md"), SPEED);
    assert!(section.contains("Speed was not measured in these records."));
    for name in ["speed", "throughput", "latency", "bandwidth", "prefill"] {
        let drawn = files.iter().any(|f| f.path.contains(&format!("-{name}.")));
        assert!(!drawn, "{name} of nothing");
    }
}

#[test]
fn benches_alone_make_a_report() {
    let recipe = Recipe::default();
    let records = Records {
        evaluations: Vec::new(),
        benches: benches(&recipe),
    };
    let files = files(&records).unwrap();
    assert!(text(&files, "REPORT.md").contains("\n## 1. Speed of toy-llama"));
}

#[test]
fn of_several_benches_of_one_format_the_latest_counts_and_machines_stay_apart() {
    let recipe = Recipe {
        experiments: vec!["bnb_4bit_nf4"],
        ..Recipe::default()
    };
    let earlier = benches(&recipe).remove(0);
    let mut later = earlier.clone();
    later.head.environment.started = "2026-02-01T00:00:00Z".to_owned();
    later.load_seconds = 123.0;
    let mut elsewhere = earlier.clone();
    elsewhere.head.environment.gpu.as_mut().unwrap().name = "Another card".to_owned();
    let records = Records {
        evaluations: Vec::new(),
        benches: vec![later, earlier, elsewhere],
    };
    let found = findings(&records, Resampling::default()).unwrap().benches;
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].speeds.runs.len(), 1);
    assert_eq!(found[0].speeds.runs[0].load_seconds, 123.0);
    assert!(found[1].title.ends_with("Another card"));
    assert_ne!(found[0].slug, found[1].slug);
}

#[test]
fn benches_on_several_gpus_or_with_long_caches_stay_apart() {
    let recipe = Recipe {
        experiments: vec!["bnb_4bit_nf4"],
        ..Recipe::default()
    };
    let one = benches(&recipe).remove(0);
    let (mut two, mut long) = (one.clone(), one.clone());
    two.head.setup.devices = 2;
    long.head.setup.plan.cached_tokens = 8192;
    let records = Records {
        evaluations: Vec::new(),
        benches: vec![one, two, long],
    };
    let found = findings(&records, Resampling::default()).unwrap().benches;
    let titles: Vec<&str> = found.iter().map(|b| b.title.as_str()).collect();
    let title = "Speed of toy-llama, cuda, random weights";
    assert_eq!(
        titles,
        [
            format!("{title}: A card"),
            format!("{title}: 2 x A card"),
            format!("{title}, 8192 cached tokens: A card")
        ]
    );
}

#[test]
fn a_single_record_is_reported_without_a_comparison() {
    let recipe = Recipe {
        experiments: vec!["fp16_baseline"],
        ..Recipe::default()
    };
    let files = rendered(&recipe);
    let report = text(&files, "REPORT.md");
    assert!(report.contains("Only FP16 is among these records"));
    assert!(!report.contains("PASS**"));
}

#[test]
fn without_a_baseline_no_format_is_judged() {
    let recipe = Recipe {
        experiments: vec!["bnb_4bit_nf4", "bnb_4bit_fp4"],
        ..Recipe::default()
    };
    let files = rendered(&recipe);
    let report = text(&files, "REPORT.md");
    assert!(report.contains("No run of FP16 (fp16_baseline) is among these records"));
    assert!(
        report.contains("NF4 less FP4: "),
        "the two are still held against each other"
    );
}

#[test]
fn one_story_has_scores_but_no_intervals() {
    let recipe = Recipe {
        stories: 1,
        turns: 3,
        ..Recipe::default()
    };
    let files = rendered(&recipe);
    assert!(text(&files, "REPORT.md").contains("no interval from a single story"));
}

#[test]
fn two_comparisons_have_two_chapters_and_files_of_their_own() {
    let mut both = records(&Recipe::default());
    both.extend(records(&Recipe {
        model: "toy llama",
        ..Recipe::default()
    }));
    let files = files(&evaluations(both)).unwrap();
    let report = text(&files, "REPORT.md");
    assert!(report.contains("\n## 1. toy-llama on toy.jsonl"));
    assert!(report.contains("\n## 2. toy llama on toy.jsonl"));
    // The names of their folders differ in a character that no file name keeps.
    let mut paths: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
    assert!(paths.contains(&"figures/toy-llama-toy-all-turns-cpu-f1.svg"));
    assert!(paths.contains(&"figures/toy-llama-toy-all-turns-cpu-2-f1.svg"));
    let count = paths.len();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), count, "two files of one name");
}

/// Asserts no more than what no machine misses; the time itself is printed.
#[test]
fn five_records_of_five_hundred_items_are_reported_in_seconds() {
    let recipe = Recipe {
        stories: 500,
        turns: 1,
        ..Recipe::default()
    };
    assert_eq!(ALL.len(), 5);
    let records = evaluations(records(&recipe));
    let start = Instant::now();
    let files = files(&records).unwrap();
    let seconds = start.elapsed();
    println!("{} files in {:.2} s", files.len(), seconds.as_secs_f64());
    assert!(seconds < Duration::from_secs(10));
}

#[test]
fn the_text_of_a_report_changes_only_when_it_is_meant_to() {
    let files = rendered(&Recipe::default());
    let report = text(&files, "REPORT.md");
    let section = |title: &str| {
        let start = report.find(title).unwrap();
        let end = report[start + 4..]
            .find("\n##")
            .map_or(report.len(), |e| start + 4 + e);
        let lines = report[start..end].lines().filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("\n")
    };
    let sections = ["### Verdicts", "### Noise floor", "### Methods"].map(section);
    snapshot::with_suffix("synthetic", || {
        insta::assert_snapshot!("report-text", sections.join("\n"));
    });
}

// The program itself, on records in a folder.

fn report(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llama-quant"))
        .arg("report")
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap()
}

/// Runs `llama-quant report` on `reports/records`, which must succeed.
fn write(dir: &Path) {
    let output = report(&[], dir);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What `llama-quant report --check` says when it fails.
fn refusal(dir: &Path) -> String {
    let output = report(&["--check"], dir);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_written_report_agrees_with_its_records_and_a_second_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    synthetic::write(
        &dir.path().join("reports/records"),
        &records(&Recipe::default()),
    );
    write(dir.path());
    let before = fs::metadata(dir.path().join("reports/REPORT.md"))
        .unwrap()
        .modified()
        .unwrap();
    assert!(report(&["--check"], dir.path()).status.success());
    write(dir.path());
    let after = fs::metadata(dir.path().join("reports/REPORT.md"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
}

#[test]
fn check_names_each_file_that_differs_is_missing_or_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let kept = records(&Recipe::default());
    let dropped = Recipe {
        model: "other",
        ..Recipe::default()
    };
    let place = dir.path().join("reports/records");
    synthetic::write(&place.join("kept"), &kept);
    synthetic::write(&place.join("dropped"), &records(&dropped));
    write(dir.path());
    fs::remove_dir_all(place.join("dropped")).unwrap();
    let at = |path: &str| dir.path().join("reports").join(path);
    fs::remove_file(at("figures/study-differences.png")).unwrap();
    fs::write(at("tables/study-em.csv"), "EM\r\n0.9\r\n").unwrap();
    fs::write(at("figures/photo.png"), "not of the report").unwrap();

    let said = refusal(dir.path());
    for line in [
        "figures/study-differences.png is missing",
        "tables/study-em.csv differs",
        "figures/other-toy-all-turns-cpu-f1.svg is stale",
        "run `llama-quant report`",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    assert!(!said.contains("tables/study-em.tex"), "{said}");

    write(dir.path());
    assert!(report(&["--check"], dir.path()).status.success());
    assert!(!at("figures/other-toy-all-turns-cpu-f1.svg").exists());
    assert!(
        at("figures/photo.png").exists(),
        "only generated files are removed"
    );
}

#[test]
fn a_manifest_cannot_make_the_report_remove_files_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    synthetic::write(
        &dir.path().join("reports/records"),
        &records(&Recipe::default()),
    );
    fs::write(dir.path().join("precious"), "").unwrap();
    let line = |path: &str| format!("{}  {path}\n", "0".repeat(64));
    let precious = dir.path().join("precious");
    let absolute = precious.to_str().unwrap();
    let manifest = [
        line("../precious"),
        line(absolute),
        line("figures/../../precious"),
    ];
    fs::write(dir.path().join("reports/SHA256SUMS"), manifest.concat()).unwrap();
    write(dir.path());
    assert!(precious.exists());
}

#[test]
fn without_a_record_the_report_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    for folder in ["empty", "absent"] {
        let output = report(&[folder], dir.path());
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains(folder) && said.contains("llama-quant compare"),
            "{said}"
        );
    }
}

#[test]
fn a_damaged_record_stops_the_report_and_leaves_the_old_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("reports/records");
    synthetic::write(&place, &records(&Recipe::default()));
    write(dir.path());
    fs::write(place.join("broken.json"), "{\"head\": {\"schema\": 1").unwrap();
    let output = report(&[], dir.path());
    assert!(!output.status.success());
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("broken.json")
    );
    fs::remove_file(place.join("broken.json")).unwrap();
    assert!(report(&["--check"], dir.path()).status.success());
}

#[test]
fn the_manifest_lists_every_other_file_with_its_sum() {
    let files = rendered(&Recipe::default());
    let sums: Vec<&str> = text(&files, "SHA256SUMS").lines().collect();
    assert_eq!(sums.len(), files.len() - 1);
}
