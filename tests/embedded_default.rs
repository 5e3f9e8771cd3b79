//! The experiments on the model and the data set that ship with the project:
//! what their scores, sizes and verdicts are.

#[path = "common/experiments.rs"]
mod experiments;
#[path = "common/snapshot.rs"]
mod snapshot;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;

use llama_quant::coqa::{Dataset, Turns, items, prompt};
use llama_quant::engine::Device;
use llama_quant::experiment::{BASELINE, CONTROL, EXPERIMENTS, Verdict};
use llama_quant::measure::{Options, embedded};
use llama_quant::quant::size::MIB;
use llama_quant::record::Record;
use llama_quant::source::hub::Located;
use llama_quant::verdict::judge::{Comparison, Difference, comparisons};
use llama_quant::verdict::stats::Resampling;
use rstest::rstest;

fn options(turns: Turns) -> Options {
    let model = Located::local(embedded::model().expect("the tiny Llama"));
    let dataset = Located::local(embedded::dataset().expect("the data set"));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("embedded-records");
    Options {
        turns,
        ..experiments::options(model, dataset, Device::Cpu, out)
    }
}

/// The records of the given experiments. Each is measured once, whatever test
/// asks first, in this process or another: records of one key are kept.
fn measured(names: &[&str], options: &Options) -> Vec<Record> {
    fs::create_dir_all(&options.out).expect("a folder for records");
    let lock = File::create(options.out.join("lock")).expect("a lock file");
    lock.lock().expect("the lock");
    experiments::records(names, options.clone())
}

/// Every experiment on every turn, judged.
fn comparison(turns: Turns) -> Comparison {
    let names = EXPERIMENTS.map(|e| e.name);
    let records = measured(&names, &options(turns));
    let mut judged = comparisons(&records, Resampling::default()).expect("a comparison");
    assert_eq!(judged.len(), 1, "all records belong together");
    judged.remove(0)
}

fn difference<'a>(comparison: &'a Comparison, experiment: &str) -> &'a Difference {
    let row = comparison
        .rows
        .iter()
        .find(|row| row.experiment == experiment);
    row.and_then(|row| row.difference.as_ref())
        .expect("a row with a difference")
}

#[rstest]
#[case::last(Turns::Last)]
#[case::all(Turns::All)]
fn scores_sizes_and_verdicts_are_as_committed(#[case] turns: Turns) {
    let comparison = comparison(turns);
    let mut text = String::new();
    let header = [
        "experiment",
        "F1",
        "- FP16",
        "EM",
        "changed",
        "KL",
        "MiB",
        "MiB+state",
        "verdict",
    ];
    let [a, b, c, d, e, f, g, h, i] = header;
    writeln!(
        text,
        "{a:23} {b:>8} {c:>8} {d:>8} {e:>7} {f:>8} {g:>6} {h:>9}  {i}"
    )
    .unwrap();
    for row in &comparison.rows {
        let d = row.difference.as_ref();
        let points = d.map_or(String::new(), |d| {
            format!("{:+.4}", d.paired.mean_difference)
        });
        let changed = d.map_or(String::new(), |d| d.flips.answers_changed.to_string());
        let kl = d
            .and_then(|d| d.forced)
            .map_or(String::new(), |f| format!("{:.5}", f.kl));
        let verdict = d
            .and_then(|d| d.judged.as_ref())
            .map_or(String::new(), |j| j.verdict.to_string());
        let line = format!(
            "{:23} {:8.4} {points:>8} {:8.4} {changed:>7} {kl:>8} {:6.3} {:9.3}  {verdict}",
            row.experiment,
            row.f1.value,
            row.em.value,
            row.size.parameters as f64 / MIB,
            row.size.with_state as f64 / MIB,
        );
        writeln!(text, "{}", line.trim_end()).unwrap();
    }
    snapshot::with_suffix(turns.name(), || insta::assert_snapshot!("scores", text));
}

#[rstest]
#[case::last(Turns::Last)]
#[case::all(Turns::All)]
fn no_verdict_is_worse_than_expected_and_none_better_without_raising_the_table(
    #[case] turns: Turns,
) {
    for row in comparison(turns).rows {
        let Some(judged) = row.difference.and_then(|d| d.judged) else {
            continue; // The baseline and the control are not judged.
        };
        let (found, name) = (judged.verdict, row.experiment);
        let wanted = judged
            .expected
            .unwrap_or_else(|| panic!("{name} {turns}: no row in EXPECTED"));
        assert!(
            found >= wanted,
            "{name} {turns}: {found}, expected {wanted}. {}",
            judged.sentence
        );
        assert!(
            found <= wanted,
            "{name} {turns}: {found} beats {wanted}: raise it in EXPECTED"
        );
        if found == Verdict::Inconclusive {
            println!("{name} {turns}: INCONCLUSIVE. {}", judged.sentence);
        }
    }
}

#[test]
fn fp16_reads_the_stories_and_is_far_from_the_best_constant_answer() {
    let comparison = comparison(Turns::Last);
    let fp16 = &comparison.rows[0];
    assert_eq!(fp16.experiment, BASELINE);
    assert!(
        (0.70..=0.97).contains(&fp16.f1.value),
        "F1 {}",
        fp16.f1.value
    );
    let constant = comparison.constant.f1;
    assert!(
        fp16.f1.value >= constant + 0.3,
        "{} against {constant}",
        fp16.f1.value
    );
}

#[test]
fn fp4_changes_enough_answers_to_tell_formats_apart() {
    let comparison = comparison(Turns::All);
    let flips = &difference(&comparison, "bnb_4bit_fp4").flips;
    let share = flips.answers_changed as f64 / flips.items as f64;
    assert!(share >= 0.05, "{share} of all turns");
}

#[test]
fn divergence_from_fp16_rises_from_int8_to_nf4_to_fp4() {
    let comparison = comparison(Turns::Last);
    let kl = |name| {
        difference(&comparison, name)
            .forced
            .expect("the stories were read")
            .kl
    };
    let [control, int8, nf4, fp4] = [CONTROL, "bnb_8bit", "bnb_4bit_nf4", "bnb_4bit_fp4"].map(kl);
    assert_eq!(control, 0.0);
    assert!(
        control < int8 && int8 < nf4 && nf4 < fp4,
        "{int8} {nf4} {fp4}"
    );
}

#[test]
fn the_control_gives_the_baselines_answers_to_the_token() {
    let records = measured(&[BASELINE, CONTROL], &options(Turns::All));
    assert_ne!(records[0].head.setup.slots, records[1].head.setup.slots);
    assert_eq!(records[0].items, records[1].items);
}

#[test]
fn logits_have_one_fingerprint_a_story_whatever_the_batch_and_another_in_each_format() {
    let names = [BASELINE, CONTROL, "bnb_8bit", "bnb_4bit_nf4"];
    let records = measured(&names, &options(Turns::Last));
    let fingerprints = |record: &Record| {
        let of_each = record.forced.iter().map(|f| f.logits_sha256.clone());
        of_each.collect::<Vec<String>>()
    };
    let [baseline, control, int8, nf4] = [0, 1, 2, 3].map(|i| fingerprints(&records[i]));
    assert_eq!(baseline, control);
    let distinct: BTreeSet<&String> = baseline.iter().chain(&int8).chain(&nf4).collect();
    assert_eq!(distinct.len(), 3 * 160, "no two readings agree by chance");
    let hexadecimal = |f: &String| f.len() == 16 && f.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(baseline.iter().all(hexadecimal));
}

#[test]
fn the_last_turns_score_the_same_whether_asked_alone_or_among_all() {
    let [last] = &measured(&[BASELINE], &options(Turns::Last))[..] else {
        panic!("one record")
    };
    let [all] = &measured(&[BASELINE], &options(Turns::All))[..] else {
        panic!("one record")
    };
    assert_eq!(last.items.len(), 160);
    for item in &last.items {
        let same = all
            .items
            .iter()
            .find(|other| other.id == item.id)
            .expect("the same turn");
        assert_eq!(
            (&item.tokens, item.f1),
            (&same.tokens, same.f1),
            "{}",
            item.id
        );
    }
}

#[test]
fn ending_after_the_first_line_scores_as_the_stop_string_alone_does() {
    let short = Options {
        limit: Some(12),
        ..options(Turns::All)
    };
    let reference = Options {
        first_line: false,
        ..short.clone()
    };
    let [ours] = &measured(&["bnb_4bit_fp4"], &short)[..] else {
        panic!("one record")
    };
    let [theirs] = &measured(&["bnb_4bit_fp4"], &reference)[..] else {
        panic!("one record")
    };
    for (a, b) in ours.items.iter().zip(&theirs.items) {
        assert_eq!(
            (&a.prediction, a.f1, a.em),
            (&b.prediction, b.f1, b.em),
            "{}",
            a.id
        );
    }
}

#[test]
fn the_prompt_is_as_committed() {
    let dataset = Dataset::open(embedded::dataset().expect("the data set")).expect("the data set");
    let item = &items(&dataset, Turns::Last, Some(1))[0];
    let text = prompt(&dataset.stories[item.story_index], item.turn_index);
    snapshot::with_suffix("first-story", || insta::assert_snapshot!("prompt", text));
}
