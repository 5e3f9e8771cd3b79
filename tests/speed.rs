//! The measurement of speed: what it asks an engine to run, what it refuses,
//! and the records it writes. No test asserts a time.

#[path = "common/mock.rs"]
mod mock;
#[path = "common/refusal.rs"]
mod refusal;

use std::path::{Path, PathBuf};

use llama_quant::Result;
use llama_quant::engine::{Decoder, Device, Opening, Segment, open};
use llama_quant::experiment::{EXPERIMENTS, Experiment};
use llama_quant::measure::bench::{Benched, speed};
use llama_quant::quant::size::model_bytes;
use llama_quant::record::{Bench, Plan, Records, Weights};
use llama_quant::source::config::Config;
use llama_quant::source::hub::Located;
use llama_quant::verdict::{speed as verdict, table};
use mock::{Call, Mock, Run};
use refusal::assert_refuses;
use rstest::rstest;

fn plan() -> Plan {
    Plan {
        prefill_tokens: vec![3, 7],
        batches: vec![1, 2],
        cached_tokens: 4,
        repetitions: 2,
        steps: 3,
        energy_seconds: 0.0,
        documents: 0,
        stories: 0,
    }
}

/// The next token is the length of the sequence.
fn mock(slots: usize, context: usize) -> Mock<impl Fn(&[u32]) -> Result<u32>> {
    Mock::new(slots, context, 50, |sequence| Ok(sequence.len() as u32))
}

/// A checkpoint folder of 320 tokens of vocabulary.
fn small() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/llama/tied_gqa_llama3rope")
}

#[test]
fn prefill_starts_from_an_empty_slot_each_time_and_steps_from_one_cache() {
    let mut decoder = mock(2, 7);
    let found = speed(&mut [&mut decoder], Device::Cpu, &plan()).expect("a plan that fits");

    // One prefill of each length does not count.
    let lengths: Vec<usize> = found.prefill.iter().map(|p| p.seconds.len()).collect();
    assert_eq!(lengths, [2, 2]);
    let starts: Vec<(usize, usize)> = decoder
        .prefilled()
        .iter()
        .filter(|run| run.start == 0)
        .map(|run| (run.slot, run.tokens.len()))
        .collect();
    let (short, long, fill) = ((0, 3), (0, 7), (0, 4));
    let wanted = [short, short, short, long, long, long, fill, (1, 4)];
    assert_eq!(starts, wanted);

    let steps: Vec<&Vec<(usize, u32)>> = decoder
        .calls
        .iter()
        .filter_map(|call| match call {
            Call::Step(rows) => Some(rows),
            Call::Prefill(_) => None,
        })
        .collect();
    for (decode, sequences) in found.decode.iter().zip([1, 2]) {
        assert_eq!((decode.sequences, decode.cached_tokens), (sequences, 4));
        assert_eq!(decode.seconds.len(), 2 * 3);
    }
    // Three repetitions of three steps, in which the tokens that the mock gives
    // say how many the slot held: 4, 5 and 6.
    let wanted = |slots: usize| {
        let rows = move |held: u32| (0..slots).map(|slot| (slot, held)).collect();
        [4, 5, 6, 4, 5, 6, 4, 5, 6].map(rows)
    };
    let wanted: Vec<Vec<(usize, u32)>> = wanted(1).into_iter().chain(wanted(2)).collect();
    assert_eq!(steps, wanted.iter().collect::<Vec<_>>());
    // What the steps have added is dropped by running the last token again.
    let again = Run {
        slot: 1,
        start: 3,
        tokens: vec![3],
    };
    let rewinds = decoder.prefilled().into_iter().filter(|run| *run == again);
    assert_eq!(rewinds.count(), 3);
}

#[test]
fn documents_are_read_and_continued_whole() {
    let mut decoder = mock(2, 50);
    let mut plan = plan();
    plan.prefill_tokens.push(40);
    plan.documents = 3;
    let found = speed(&mut [&mut decoder], Device::Cpu, &plan).expect("a plan that fits");
    let documents = found.documents.expect("asked for");
    // Longer than the plan's context leaves room for, and cut to that.
    assert_eq!((documents.count, documents.new_tokens), (3, 16));
    assert_eq!(documents.prompt_tokens, 3 * (40 - 16));
    assert!(documents.seconds > 0.0);
    let whole = decoder.prefilled();
    let whole = whole.iter().filter(|run| run.tokens.len() == 40 - 16);
    assert_eq!(whole.count(), 2 * 3, "twice, of which the second counts");
}

#[test]
fn a_story_is_read_once_and_each_other_turn_runs_one_token_of_its_prompt() {
    let mut decoder = Mock::new(2, 800, 1000, |sequence| Ok(sequence.len() as u32));
    let mut plan = plan();
    plan.prefill_tokens.push(800);
    plan.stories = 3;
    let found = speed(&mut [&mut decoder], Device::Cpu, &plan).expect("a plan that fits");
    let turns = found.turns.expect("asked for");
    // After what the prefills, the steps and their rewinds ran.
    let runs = decoder.prefilled();
    let story = |run: &Run| run.start == 0 && (300..800).contains(&run.tokens.len());
    let first = runs.iter().position(story).expect("a story");
    // A prompt that is read may run in several parts.
    let (read, again): (Vec<&Run>, Vec<&Run>) =
        runs[first..].iter().partition(|run| run.tokens.len() > 1);
    let read: usize = read.iter().map(|run| run.tokens.len()).sum();
    assert_eq!(read, 2 * turns.prompt_tokens, "twice, the second counts");
    assert_eq!(again.len(), 2 * (turns.count - turns.stories));
    // Each token that runs again is the one that the cache had there.
    assert!(again.iter().all(|run| run.tokens == [run.start as u32]));
}

#[test]
fn turns_run_on_the_cpu_engine_and_are_counted() {
    let benched = Benched::open(
        Device::Cpu.into(),
        &Located::local(small()),
        Weights::Random { seed: 0 },
    )
    .expect("a model");
    let mut plan = plan();
    plan.prefill_tokens.push(40);
    plan.stories = 2;
    let experiment = Experiment::named("bnb_4bit_nf4").expect("an experiment");
    let bench = benched.bench(&experiment, &plan).expect("a bench");
    assert_eq!(bench.head.setup.plan.stories, 2);
    assert_eq!(bench.speed.documents, None);
    let turns = bench.speed.turns.as_ref().expect("asked for");
    // The shortest story of all, and one above the middle.
    assert_eq!((turns.stories, turns.count), (2, 9 + 18));
    assert_eq!((turns.prompt_tokens, turns.new_tokens), (2 * (40 - 8), 8));
    assert!(turns.seconds > 0.0);
    let ours = verdict::speed(bench.head.setup.format, bench.head.parts, &bench.speed);
    let ours = ours.expect("samples");
    assert_eq!(ours.turns[0].all, *turns);
    let text = serde_json::to_string(&ours).expect("JSON");
    let again: verdict::Speed = serde_json::from_str(&text).expect("what was written");
    assert_eq!(again, ours);
    let printed = table::speed(&[bench]).expect("a table");
    assert!(printed.contains("27 turns, s"), "{printed}");
}

#[test]
fn turns_without_room_for_their_new_tokens_are_refused() {
    let mut plan = plan();
    plan.stories = 1;
    assert_refuses(
        speed(&mut [&mut mock(2, 7)], Device::Cpu, &plan),
        ["prompt 0 with its new tokens", "1 to 7 tokens", "0", ""],
    );
}

#[test]
fn what_the_cpu_cannot_say_is_absent_and_says_why() {
    let mut decoder = mock(2, 7);
    let mut plan = plan();
    let found = speed(&mut [&mut decoder], Device::Cpu, &plan).expect("a plan that fits");
    assert!(found.copy_bytes_per_second.is_some_and(|copy| copy > 0.0));
    assert_eq!(found.flops_per_second, None);
    assert!(found.energy.is_empty() && found.card.is_empty());
    assert_eq!(found.memory, None, "the mock does not count");
    let why = found.energy_missing.expect("a reason");
    assert!(why.contains("llama-quant bench"), "{why}");
    plan.energy_seconds = 0.01;
    let found = speed(&mut [&mut decoder], Device::Cpu, &plan).expect("a plan that fits");
    let why = found.energy_missing.expect("a reason");
    assert!(why.contains("energy of a CPU"), "{why}");
}

#[rstest]
#[case::a_batch_larger_than_the_slots(1, 7, |_: &mut Plan| {})]
#[case::a_prompt_longer_than_the_context(2, 6, |_: &mut Plan| {})]
#[case::steps_past_the_context(2, 7, |plan: &mut Plan| plan.steps = 4)]
#[case::no_repetition(2, 7, |plan: &mut Plan| plan.repetitions = 0)]
#[case::no_step(2, 7, |plan: &mut Plan| plan.steps = 0)]
#[case::nothing_cached(2, 7, |plan: &mut Plan| plan.cached_tokens = 0)]
#[case::a_batch_of_none(2, 7, |plan: &mut Plan| plan.batches.push(0))]
#[case::an_empty_prompt(2, 7, |plan: &mut Plan| plan.prefill_tokens.push(0))]
fn a_plan_that_cannot_be_measured_is_refused_before_anything_runs(
    #[case] slots: usize,
    #[case] context: usize,
    #[case] change: fn(&mut Plan),
) {
    let mut plan = plan();
    change(&mut plan);
    let mut decoder = mock(slots, context);
    let wanted = format!("within {slots} sequences of {context} tokens");
    assert_refuses(
        speed(&mut [&mut decoder], Device::Cpu, &plan),
        ["plan", &wanted, "Plan {", "Plan::within"],
    );
    assert!(decoder.calls.is_empty());
}

#[test]
fn a_plan_is_cut_to_what_an_engine_has_room_for() {
    for (slots, context) in [(1, 7), (2, 6), (5, 5), (64, 4)] {
        let cut = plan().within(slots, context);
        let found = speed(&mut [&mut mock(slots, context)], Device::Cpu, &cut);
        found.unwrap_or_else(|e| panic!("{slots} slots of {context}: {e}"));
    }
    let device = Device::Cuda(0);
    assert_eq!(Plan::long(device).within(16, 512).slots(), 8);
    assert!(Plan::long(device).within(64, 512).context() <= 512);
}

#[test]
fn random_weights_are_the_same_each_time_and_take_the_bytes_of_the_formula() {
    let config = Config::open(&small()).expect("a configuration");
    for experiment in EXPERIMENTS {
        let Experiment {
            name,
            format,
            compute,
            ..
        } = experiment;
        let opened = || {
            open(Opening {
                device: Device::Cpu,
                model: &small(),
                weights: Weights::Random { seed: 0 },
                format,
                compute,
                slots: 2,
                context: 16,
            })
            .expect("random weights")
        };
        let logits = |decoder: &mut dyn Decoder| {
            let tokens = [1, 2, 3];
            let segment = Segment {
                slot: 1,
                start: 0,
                tokens: &tokens,
            };
            decoder.logits(&[segment]).expect("a forward pass")
        };
        let (mut first, mut second) = (opened(), opened());
        let found = logits(first.decoder.as_mut());
        assert_eq!(found, logits(second.decoder.as_mut()), "{name}");
        assert!(found.iter().all(|logit| logit.is_finite()), "{name}");
        assert!(found[0] != found[1], "{name}: the weights are not all one");

        assert_eq!(first.size, model_bytes(&config, format), "{name}");
        let memory = first.decoder.memory().expect("the CPU engine counts");
        // Norms are held as f32 instead of FP16.
        let norms = 2 * (2 * config.layers + 1) * config.hidden;
        assert_eq!(memory.weights_bytes, first.size.with_state + norms as u64);
        let cached = 2 * 4 * config.layers * config.kv_heads * config.head_dim;
        assert_eq!(memory.cache_bytes_per_token, cached as u64);
        assert_eq!(memory.cache_bytes, 2 * 16 * cached as u64);
    }
}

#[test]
fn a_gpu_that_is_not_there_is_refused_by_name() {
    let opening = Opening {
        // No machine has so many.
        device: Device::Cuda(99),
        model: &small(),
        weights: Weights::Checkpoint,
        format: EXPERIMENTS[0].format,
        compute: EXPERIMENTS[0].compute,
        slots: 1,
        context: 8,
    };
    assert_refuses(open(opening), ["cuda:99", "", "", "--device cpu"]);
}

#[test]
fn a_bench_is_read_back_as_it_was_written_beside_other_records() {
    let dir = tempfile::tempdir().expect("a folder");
    let benched = Benched::open(
        Device::Cpu.into(),
        &Located::local(small()),
        Weights::Random { seed: 0 },
    )
    .expect("a model");
    let experiment = Experiment::named("bnb_4bit_nf4").expect("an experiment");
    let bench = benched.bench(&experiment, &plan()).expect("a bench");
    let setup = &bench.head.setup;
    assert_eq!((setup.slots, setup.context), (2, 7));
    assert_eq!(
        setup.model.files.len(),
        1,
        "the configuration alone is read"
    );
    let path = bench.write(dir.path()).expect("a record");
    assert_eq!(path, Bench::path(dir.path(), setup));
    assert_eq!(Bench::open(&path).expect("a bench"), bench);

    let found = Records::open(dir.path()).expect("records");
    assert_eq!((found.evaluations.len(), found.benches), (0, vec![bench]));
    let refusal = llama_quant::record::Record::open(&path);
    let refusal = refusal.expect_err("no evaluation").to_string();
    assert!(refusal.contains("of kind evaluation"), "{refusal}");

    let text = std::fs::read_to_string(&path).expect("the record");
    let edited = text.replace("\"slots\": 2", "\"slots\": 3");
    assert_ne!(edited, text);
    std::fs::write(&path, edited).expect("an edited record");
    let refusal = Records::open(dir.path()).expect_err("edited").to_string();
    assert!(
        refusal.contains("a key that belongs to the setup"),
        "{refusal}"
    );
}
