//! The experiments on a GPU: what `cargo test --release -- --ignored` measures
//! and asserts there.
//!
//! The model is what `LLAMA_QUANT_MODEL` names: `fixture` (the tiny Llama of the
//! project), `random` (random weights in the shape of Llama-3.2-1B), a
//! checkpoint folder, or an id on the hub, `meta-llama/Llama-3.2-1B` by default;
//! the data set is `LLAMA_QUANT_DATASET`, EleutherAI/coqa by default. What a
//! mode cannot test fails and says which filter leaves it out:
//!
//! - `random` has no answers: `--skip quality`
//! - `fixture` fits into a GPU's cache: `--skip latency`
//!
//! Each experiment is measured once, whatever test asks first, in this process
//! or another; its record goes to `LLAMA_QUANT_RECORDS`, by default a folder of
//! the day under `reports/records`.

#[path = "common/experiments.rs"]
mod experiments;
#[path = "common/gpu.rs"]
mod gpu;

use std::env;
use std::path::{Path, PathBuf};

use experiments::{options, records};
use indicatif::ProgressBar;
use llama_quant::engine::Device;
use llama_quant::experiment::{BASELINE, CONTROL, Experiment, Verdict};
use llama_quant::measure::bench::Benched;
use llama_quant::measure::embedded;
use llama_quant::measure::environment::today;
use llama_quant::quant::size::{MIB, model_bytes};
use llama_quant::record::{Bench, Plan, Record, Records};
use llama_quant::source::config::Config;
use llama_quant::source::hub::{self, COQA, Kind, Located};
use llama_quant::source::origin::Weights;
use llama_quant::verdict::judge::{Comparison, comparisons};
use llama_quant::verdict::speed::speed;
use llama_quant::verdict::stats::Resampling;
use rstest::rstest;

const DEFAULT_MODEL: &str = "meta-llama/Llama-3.2-1B";
/// Weights of fewer bytes stay in the cache of a large GPU from one step to the
/// next, so that the bandwidth of its memory bounds nothing.
const MEMORY_BOUND_BYTES: u64 = 512 << 20;

/// What the environment asks for.
struct Wanted {
    model: Located,
    weights: Weights,
    dataset: Option<Located>,
}

impl Wanted {
    fn new() -> Self {
        let named = env::var("LLAMA_QUANT_MODEL").unwrap_or_else(|_| DEFAULT_MODEL.to_owned());
        let fixtures = || embedded::fixtures().expect("the fixtures of the project");
        match named.as_str() {
            "fixture" => Self {
                model: Located::local(embedded::model().expect("the tiny Llama")),
                weights: Weights::Checkpoint,
                dataset: Some(Located::local(embedded::dataset().expect("the data set"))),
            },
            "random" => Self {
                model: Located::local(fixtures().join("configs/llama-3.2-1b")),
                weights: Weights::Random { seed: 0 },
                dataset: None,
            },
            other => {
                let dataset = env::var("LLAMA_QUANT_DATASET");
                let dataset = dataset.unwrap_or_else(|_| COQA.to_owned());
                Self {
                    model: located(Kind::Model, other),
                    weights: Weights::Checkpoint,
                    dataset: Some(located(Kind::Dataset, &dataset)),
                }
            }
        }
    }

    /// The data set, or a failure that names the filter.
    fn dataset(&self) -> Located {
        self.dataset.clone().unwrap_or_else(|| {
            panic!(
                "random weights answer no question, so F1 cannot be tested with \
                 LLAMA_QUANT_MODEL=random; leave these tests out with `-- --ignored --skip quality`"
            )
        })
    }
}

/// A path that exists, or an id on the hub.
fn located(kind: Kind, name: &str) -> Located {
    let located = hub::resolve(kind, Path::new(name), &ProgressBar::hidden());
    located.unwrap_or_else(|e| panic!("{e}"))
}

fn folder() -> PathBuf {
    let default = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        root.join(format!("reports/records/{}-cuda", today()))
    };
    env::var_os("LLAMA_QUANT_RECORDS").map_or_else(default, PathBuf::from)
}

/// The bench of an experiment, measured unless this program has done so.
fn benched(name: &str) -> Bench {
    let card = gpu::card();
    let wanted = Wanted::new();
    let program = llama_quant::measure::environment::program().expect("this program");
    let folder = folder();
    let kept = folder
        .is_dir()
        .then(|| Records::open(&folder).expect("whole records"));
    let kept = kept.and_then(|kept| {
        kept.benches.into_iter().find(|bench| {
            let setup = &bench.head.setup;
            setup.experiment == name
                && setup.program == program
                && setup.model.name == wanted.model.name
                && setup.weights == wanted.weights
        })
    });
    kept.unwrap_or_else(|| {
        let experiment = Experiment::named(name).expect("an experiment");
        let device = Device::Cuda(card.ordinal);
        let model = Benched::open(device.into(), &wanted.model, wanted.weights).expect("a model");
        // No test asks for energy.
        let plan = Plan {
            energy_seconds: 0.0,
            ..Plan::long(device)
        };
        let bench = model.bench(&experiment, &plan).expect("a measurement");
        bench.write(&folder).expect("a record");
        bench
    })
}

/// Records of the experiments, measured unless this program has done so.
fn measured(names: &[&str]) -> Vec<Record> {
    let card = gpu::card();
    let wanted = Wanted::new();
    let (dataset, device) = (wanted.dataset(), Device::Cuda(card.ordinal));
    records(names, options(wanted.model, dataset, device, folder()))
}

fn comparison(names: &[&str]) -> Comparison {
    let mut judged = comparisons(&measured(names), Resampling::default()).expect("a comparison");
    assert_eq!(judged.len(), 1, "all records belong together");
    judged.remove(0)
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn size_is_that_of_the_formula_and_the_card_holds_no_more(
    #[values(
        "fp16_baseline",
        "bnb_8bit",
        "bnb_4bit_nf4",
        "bnb_4bit_fp4",
        "bnb_4bit_nf4_no_double",
        "bnb_4bit_nf4_bf16"
    )]
    name: &str,
) {
    let bench = benched(name);
    let config = Config::open(&Wanted::new().model.path).expect("a configuration");
    let formula = model_bytes(&config, bench.head.setup.format);
    assert_eq!(bench.head.size, formula);
    let memory = bench.speed.memory.expect("the engine counts");
    let (held, wanted) = (memory.weights_bytes as f64, formula.with_state as f64);
    println!(
        "{name}: {:.1} MiB held, {:.1} by the formula",
        held / MIB,
        wanted / MIB
    );
    // Norms are held as f32, and last tiles are filled up.
    assert!(
        held >= wanted && held <= 1.03 * wanted,
        "{held} bytes held, {wanted} wanted"
    );
    let workspace = memory.workspace_bytes.expect("counted");
    let allocated = memory.allocated_bytes.expect("counted");
    let peak = memory.peak_bytes.expect("counted");
    assert_eq!(
        allocated,
        memory.weights_bytes + memory.cache_bytes + workspace
    );
    assert!(peak >= allocated);
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn latency_of_a_single_sequence_is_near_the_limit_of_the_bandwidth(
    #[values(
        "fp16_baseline",
        "bnb_8bit",
        "bnb_4bit_nf4",
        "bnb_4bit_fp4",
        "bnb_4bit_nf4_no_double",
        "bnb_4bit_nf4_bf16"
    )]
    name: &str,
) {
    let bench = benched(name);
    let judged =
        speed(bench.head.setup.format, bench.head.parts, &bench.speed).expect("enough samples");
    assert!(
        judged.step_weights_bytes >= MEMORY_BOUND_BYTES,
        "the weights of {} are {:.0} MiB and stay in a GPU's cache, so its memory bounds nothing; \
         leave these tests out with `-- --ignored --skip latency`",
        bench.head.setup.model.name,
        judged.step_weights_bytes as f64 / MIB,
    );
    let single = judged.single.expect("batch 1 was measured");
    let share = single.bandwidth_share.expect("the copy was measured");
    let least = Experiment::named(name)
        .expect("an experiment")
        .bandwidth_share;
    println!(
        "{name}: {:.1} % of the measured copy bandwidth",
        100.0 * share
    );
    assert!(
        share >= least,
        "{share} of the bandwidth, at least {least} wanted"
    );
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn latency_of_nf4_is_below_that_of_fp16() {
    let median = |name| {
        let bench = benched(name);
        let judged =
            speed(bench.head.setup.format, bench.head.parts, &bench.speed).expect("enough samples");
        judged
            .single
            .expect("batch 1 was measured")
            .seconds
            .median
            .value
    };
    let (nf4, fp16) = (median("bnb_4bit_nf4"), median(BASELINE));
    println!("NF4 {:.3} ms, FP16 {:.3} ms", 1e3 * nf4, 1e3 * fp16);
    assert!(nf4 < fp16);
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn quality_is_no_worse_than_expected(
    #[values(
        "bnb_8bit",
        "bnb_4bit_nf4",
        "bnb_4bit_fp4",
        "bnb_4bit_nf4_no_double",
        "bnb_4bit_nf4_bf16"
    )]
    name: &str,
) {
    let comparison = comparison(&[BASELINE, name]);
    let row = comparison.rows.iter().find(|row| row.experiment == name);
    let row = row.expect("a row of the experiment");
    let difference = row.difference.as_ref().expect("a difference to FP16");
    let judged = difference.judged.as_ref().expect("a verdict");
    println!(
        "{name}: F1 {:.4}, {:+.4} to FP16. {}",
        row.f1.value, difference.paired.mean_difference, judged.sentence
    );
    // Where the table has no verdict, a loss must at least not be shown.
    let wanted = judged.expected.unwrap_or(Verdict::Inconclusive);
    assert!(judged.verdict >= wanted, "{}", judged.sentence);
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn quality_of_nf4_against_fp16_has_a_verdict_with_its_power() {
    let comparison = comparison(&[BASELINE, "bnb_4bit_nf4"]);
    let row = &comparison.rows[1];
    let judged = row.difference.as_ref().and_then(|d| d.judged.as_ref());
    let judged = judged.expect("a verdict");
    println!("{}", judged.sentence);
    assert!(row.f1.value.is_finite() && (0.0..=1.0).contains(&row.f1.value));
    assert!(!judged.sentence.is_empty());
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn quality_of_the_control_is_that_of_the_baseline_to_the_bit() {
    let records = measured(&[BASELINE, CONTROL]);
    assert_ne!(records[0].head.setup.slots, records[1].head.setup.slots);
    for (a, b) in records[0].items.iter().zip(&records[1].items) {
        assert_eq!(a.tokens, b.tokens, "{}", a.id);
    }
    for (a, b) in records[0].forced.iter().zip(&records[1].forced) {
        assert_eq!(a.logits_sha256, b.logits_sha256, "{}", a.story);
    }
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn quality_on_the_card_is_that_of_the_cpu_engine(
    #[values("fp16_baseline", "bnb_8bit", "bnb_4bit_nf4", "bnb_4bit_fp4")] name: &str,
) {
    let wanted = Wanted::new();
    let parameters = Config::open(&wanted.model.path).expect("a configuration");
    let bytes = model_bytes(&parameters, llama_quant::quant::Format::Fp16).parameters;
    assert!(
        bytes < MEMORY_BOUND_BYTES,
        "a model of {:.0} MiB would take hours on the CPU engine; test with \
         LLAMA_QUANT_MODEL=fixture, or leave this out with `-- --ignored --skip cpu_engine`",
        bytes as f64 / MIB
    );
    let ours = measured(&[name]).remove(0);
    let (dataset, out) = (wanted.dataset(), folder().join("cpu"));
    let card = gpu::card(); // The two kinds of run do not disturb each other.
    let cpu = records(&[name], options(wanted.model, dataset, Device::Cpu, out)).remove(0);
    drop(card);
    let pairs = || ours.items.iter().zip(&cpu.items);
    let differ = pairs()
        .filter(|(a, b)| a.prediction != b.prediction)
        .count();
    println!(
        "{name}: {differ} of {} answers differ from the CPU engine's",
        ours.items.len()
    );
    assert!(100 * differ <= ours.items.len(), "{differ} answers differ");
}
