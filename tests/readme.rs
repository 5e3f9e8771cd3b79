//! The numbers on the front page are those of the snapshots and of the records.

use std::fs;
use std::path::Path;

use llama_quant::record::{Bench, Records};
use llama_quant::verdict::speed::speed;
use rstest::rstest;
use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[rstest]
#[case::last("last")]
#[case::all("all")]
fn the_readme_shows_the_committed_scores(#[case] turns: &str) {
    let snapshot = read(&format!("snapshots/scores@{turns}.snap"));
    let scores = snapshot
        .splitn(3, "---\n")
        .nth(2)
        .expect("a snapshot with a head")
        .trim_end();
    assert!(scores.lines().count() > 5, "a table");
    assert!(
        read("README.md").contains(&format!("```\n{scores}\n```")),
        "README.md does not show snapshots/scores@{turns}.snap; copy the table there"
    );
}

#[test]
fn the_readme_shows_the_committed_speeds_beside_their_peers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let records = root.join("reports/records/2026-11-25-h200-llama-3.2-1b-shape");
    let benches = Records::open(&records).expect("records").benches;
    let peers = read("reports/peers/transformers-bitsandbytes-h200.jsonl");
    let readme = read("README.md");
    for line in peers.lines() {
        let peer: Value = serde_json::from_str(line).expect("a line of JSON");
        let (name, label) = match peer["kind"].as_str().expect("a format") {
            "fp16" => ("fp16_baseline", "FP16"),
            "nf4" => ("bnb_4bit_nf4", "NF4"),
            "fp4" => ("bnb_4bit_fp4", "FP4"),
            "int8" => ("bnb_8bit", "INT8"),
            other => panic!("no experiment for {other}"),
        };
        let bench = benches.iter().find(|b| b.head.setup.experiment == name);
        let bench = bench.expect("a bench of the same run");
        let format = bench.head.setup.format;
        let ours = speed(format, bench.head.parts, &bench.speed).expect("samples");
        let prefill = ours.prefill.iter().find(|p| p.tokens == 512);
        let many = ours.decode.iter().find(|d| d.sequences == 32);
        let milliseconds = |seconds: f64| 1e3 * seconds;
        let theirs = |key: &str| peer[key].as_f64().expect("a number");
        let mut row = format!("| {label} |");
        for (theirs, ours, digits, faster) in [
            (
                theirs("decode_ms"),
                ours.single
                    .as_ref()
                    .map(|d| milliseconds(d.seconds.median.value)),
                3,
                true,
            ),
            (
                theirs("prefill512_ms"),
                prefill.map(|p| milliseconds(p.seconds.median.value)),
                2,
                true,
            ),
            (
                theirs("gen_b32_tok_s"),
                many.map(|d| d.tokens_per_second),
                0,
                false,
            ),
        ] {
            let ours = ours.expect("measured");
            let ratio = if faster { theirs / ours } else { ours / theirs };
            row += &format!(" {theirs:.digits$} | {ours:.digits$} | {ratio:.1} |");
        }
        let documents = bench.speed.documents.as_ref().expect("measured");
        row += &format!(" {:.2} |", documents.seconds);
        println!("{row}");
        assert!(readme.contains(&row), "README.md does not show: {row}");
    }
    assert_eq!(peers.lines().count(), 4, "four formats have a peer");
}

/// The benches of a folder of records, by name of their experiment.
fn benches(folder: &str) -> Vec<(String, Bench)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/records");
    let records = Records::open(&root.join(folder)).expect("records");
    let named = |bench: Bench| (bench.head.setup.experiment.clone(), bench);
    records.benches.into_iter().map(named).collect()
}

fn median(bench: &Bench, sequences: usize) -> f64 {
    let ours = speed(bench.head.setup.format, bench.head.parts, &bench.speed).expect("samples");
    let decode = ours.decode.iter().find(|d| d.sequences == sequences);
    decode.expect("measured").seconds.median.value
}

#[test]
fn what_is_said_of_turns_long_caches_and_two_cards_is_in_the_records() {
    let readme = read("README.md");
    let shape = benches("2026-11-25-h200-llama-3.2-1b-shape");
    let cached = benches("2026-11-25-h200-cached-8192");
    let two = benches("2026-11-25-h200-x2");
    let of = |benches: &[(String, Bench)], name: &str| -> Bench {
        let found = benches.iter().find(|(of, _)| of == name);
        found.expect("an experiment").1.clone()
    };
    let [fp16, nf4] = ["fp16_baseline", "bnb_4bit_nf4"].map(|name| {
        let turns = of(&shape, name).speed.turns.expect("turns").seconds;
        (turns, 1e3 * median(&of(&cached, name), 1))
    });
    let documents = of(&two, "fp16_baseline").speed.documents;
    for said in [
        format!("take {:.1} s in FP16 and {:.1} s in NF4", fp16.0, nf4.0),
        format!("takes {:.2} ms in FP16, {:.2} in NF4", fp16.1, nf4.1),
        format!(
            "took {:.2} s in FP16",
            documents.expect("documents").seconds
        ),
    ] {
        assert!(readme.contains(&said), "README.md does not say: {said}");
    }
}

#[test]
fn what_is_beside_other_programs_is_in_the_records() {
    let limits = read("reports/LIMITS.md");
    let shape = benches("2026-11-25-h200-llama-3.2-1b-shape");
    let label = |name: &str| match name {
        "fp16_baseline" => "FP16",
        "bnb_4bit_nf4" => "NF4 (double quantisation)",
        "bnb_4bit_fp4" => "FP4 (double quantisation)",
        "bnb_8bit" => "INT8 (threshold 6)",
        other => panic!("no line for {other}"),
    };
    for (name, bench) in &shape {
        let ours = speed(bench.head.setup.format, bench.head.parts, &bench.speed);
        let ours = ours.expect("samples");
        let prefill = ours.prefill.iter().find(|p| p.tokens == 512);
        let row = format!(
            "| this engine, {} | {:.3} | {:.2} | {:.0} |",
            label(name),
            1e3 * median(bench, 1),
            1e3 * prefill.expect("measured").seconds.median.value,
            32.0 / median(bench, 32)
        );
        assert!(
            limits.contains(&row),
            "reports/LIMITS.md does not show: {row}"
        );
    }
    assert_eq!(shape.len(), 4, "four formats");
}
