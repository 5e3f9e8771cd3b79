//! Records made in code: plausible runs of any size, no model needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use llama_quant::coqa::{Scoring, Turns};
use llama_quant::experiment::Experiment;
use llama_quant::quant::Compute;
use llama_quant::quant::size::Parts;
use llama_quant::record::{
    AllTurns, Bench, BenchHead, BenchSetup, CardState, Constant, Dataset, Decode, Documents,
    Energy, Environment, Finish, Forced, Gpu, Head, Item, Kind, Memory, Model, Plan, Prefill,
    Record, Records, SCHEMA, Samples, Setup, Speed, Task, Weights,
};
use llama_quant::source::config::Config;

/// What the records of one comparison look like.
#[derive(Clone)]
pub struct Recipe {
    pub experiments: Vec<&'static str>,
    pub model: &'static str,
    pub stories: usize,
    pub turns: usize,
    /// Changes every number of the records.
    pub seed: u64,
    /// Stands for every text of the model, if given.
    pub text: Option<&'static str>,
}

pub const ALL: [&str; 5] = [
    "fp16_baseline",
    "fp16_control",
    "bnb_8bit",
    "bnb_4bit_nf4",
    "bnb_4bit_fp4",
];

impl Default for Recipe {
    fn default() -> Self {
        Self {
            experiments: ALL.to_vec(),
            model: "toy-llama",
            stories: 40,
            turns: 2,
            seed: 1,
            text: None,
        }
    }
}

/// A number in 0..1 that depends on all of `at`.
fn uniform(at: &[u64]) -> f64 {
    let mix = |state: u64, x: &u64| {
        let z = (state ^ x).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    (at.iter().fold(0, mix) >> 11) as f64 / (1_u64 << 53) as f64
}

pub fn records(recipe: &Recipe) -> Vec<Record> {
    let experiments = recipe.experiments.iter();
    experiments.map(|name| record(recipe, name)).collect()
}

fn record(recipe: &Recipe, name: &str) -> Record {
    let experiment = Experiment::named(name).expect("a name of the table");
    // How often and how far this format strays from the baseline.
    let (place, stray) = match name {
        "fp16_baseline" | "fp16_control" => (0, 0.0),
        "bnb_8bit" => (1, 0.05),
        "bnb_4bit_nf4" => (2, 0.2),
        "bnb_4bit_fp4" => (3, 0.3),
        _ => (4, 0.25),
    };
    let seed = recipe.seed;
    let setup = Setup {
        experiment: name.to_owned(),
        format: experiment.format,
        compute: Compute::F16,
        model: Model {
            revision: None,
            name: recipe.model.to_owned(),
            files: BTreeMap::from([("config.json".to_owned(), format!("{seed:064x}"))]),
        },
        dataset: Dataset {
            revision: None,
            name: "toy.jsonl".to_owned(),
            sha256: format!("{:064x}", seed + 1),
        },
        task: Task {
            turns: if recipe.turns == 1 {
                Turns::Last
            } else {
                Turns::All
            },
            limit: None,
            scoring: Scoring::LmEval,
            bos: true,
            max_new_tokens: 100 + seed as usize,
            stop: vec!["\nQ:".to_owned()],
            first_line: true,
        },
        engine: "cpu".to_owned(),
        slots: experiment.slots,
        program: format!("{:064x}", seed + 2),
    };
    let parts = Parts {
        embedding: 700_000 + 1000 * seed,
        head: 0,
        norms: 5000 + seed,
        linears: [4_000_000, 2_000_000, 1_000_000, 1_000_000, 1_000_000][place] + seed,
        state: [0, 30_000, 40_000, 40_000, 150_000][place],
    };
    let items = recipe.stories * recipe.turns;
    Record {
        head: Head {
            schema: SCHEMA,
            kind: Kind::Evaluation,
            key: setup.key(),
            setup,
            environment: Environment {
                device: "cpu".to_owned(),
                gpu: None,
                cpu: "A processor".to_owned(),
                cores: 3 + seed as usize,
                memory_bytes: (7 + seed) << 30,
                os: "An operating system".to_owned(),
                crate_version: format!("0.{seed}.0"),
                git_revision: Some(format!("{seed:040x}")),
                git_clean: Some(true),
                started: format!("2026-01-0{}T00:00:00Z", 1 + place),
            },
            size: parts.total(),
            parts,
            constant: Constant {
                answer: recipe.text.unwrap_or("yes").to_owned(),
                f1: 0.05 + 0.1 * uniform(&[seed, 77]),
            },
        },
        items: (0..items)
            .map(|index| item(recipe, index, place as u64, stray))
            .collect(),
        forced: (0..recipe.stories)
            .map(|index| forced(recipe, index, place as u64, stray))
            .collect(),
        samples: Samples {
            load_seconds: 0.5 + uniform(&[seed, place as u64, 1]),
            evaluate_seconds: 5.0 + uniform(&[seed, place as u64, 2]),
            speed: Some(Speed {
                energy_missing: Some(recipe.text.unwrap_or("nobody asked").to_owned()),
                ..speed(seed, place as u64)
            }),
        },
    }
}

/// Benches of the model of a recipe on a GPU, every field filled.
pub fn benches(recipe: &Recipe) -> Vec<Bench> {
    let place = |name: &str| ALL.iter().position(|n| *n == name).unwrap_or(ALL.len());
    let experiments = recipe.experiments.iter();
    let experiments = experiments.filter(|name| **name != "fp16_control");
    experiments
        .map(|name| bench(recipe, name, place(name) as u64))
        .collect()
}

fn bench(recipe: &Recipe, name: &str, place: u64) -> Bench {
    let head = record(recipe, name).head;
    let seed = recipe.seed;
    let named = |plain: &str| recipe.text.unwrap_or(plain).to_owned();
    let setup = BenchSetup {
        devices: 1,
        experiment: head.setup.experiment,
        format: head.setup.format,
        compute: head.setup.compute,
        model: head.setup.model,
        weights: Weights::Random { seed: 0 },
        config: Config {
            quantised: None,
            vocab: 1000,
            hidden: 64,
            intermediate: 128,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: None,
            max_positions: 2048,
            tied: true,
            bos: None,
            eos: Vec::new(),
        },
        engine: "cuda".to_owned(),
        slots: 64,
        context: 600,
        plan: Plan {
            prefill_tokens: vec![60, 120, 240],
            batches: vec![1, 4, 16],
            cached_tokens: Plan::CACHED_TOKENS,
            repetitions: 4,
            steps: 4,
            energy_seconds: 5.0,
            documents: 500,
            stories: 500,
        },
        program: head.setup.program,
    };
    let speed = speed(seed + 10, place);
    let memory = speed.memory.map(|memory| Memory {
        workspace_bytes: Some(1_000_000 + seed),
        allocated_bytes: Some(9_000_000 + seed),
        peak_bytes: Some(9_500_000 + seed),
        ..memory
    });
    let state = |at: u64| CardState {
        sm_clock_mhz: 1500 + (100.0 * uniform(&[seed, place, at, 50])) as u32,
        memory_clock_mhz: 2600 + seed as u32,
        temperature_celsius: 30 + (20.0 * uniform(&[seed, place, at, 51])) as u32,
        power_watts: 100.0 + 200.0 * uniform(&[seed, place, at, 52]),
    };
    Bench {
        head: BenchHead {
            schema: SCHEMA,
            kind: Kind::Bench,
            key: setup.key(),
            setup,
            environment: Environment {
                device: "cuda:0".to_owned(),
                gpu: Some(Gpu {
                    name: named("A card"),
                    driver: format!("57{seed}.10"),
                    cuda: format!("13.{seed}"),
                    memory_bytes: (79 + seed) << 30,
                    compute_capability: format!("9.{seed}"),
                }),
                ..head.environment
            },
            size: head.size,
            parts: head.parts,
        },
        load_seconds: 0.7 + uniform(&[seed, place, 53]),
        speed: Speed {
            flops_per_second: Some(7e14 + 1e12 * uniform(&[seed, place, 54])),
            energy: [1, 4, 16]
                .map(|sequences| Energy {
                    sequences,
                    joules: 1000.0 + 100.0 * uniform(&[seed, place, 55, sequences as u64]),
                    seconds: 5.0 + uniform(&[seed, place, 56]),
                    tokens: 1000 * sequences + seed as usize,
                })
                .to_vec(),
            energy_missing: None,
            documents: Some(Documents {
                count: 400 + seed as usize,
                prompt_tokens: 200_000 + seed as usize,
                new_tokens: 10 + seed as usize,
                seconds: 1.0 + uniform(&[seed, place, 57]),
            }),
            turns: Some(AllTurns {
                stories: 450 + seed as usize,
                count: 7000 + seed as usize,
                prompt_tokens: 250_000 + seed as usize,
                new_tokens: 5 + seed as usize,
                seconds: 2.0 + uniform(&[seed, place, 58]),
            }),
            memory,
            card: vec![state(0), state(1)],
            ..speed
        },
    }
}

fn speed(seed: u64, place: u64) -> Speed {
    let samples = |at: u64, shortest: f64| {
        let sample = |i| shortest * (1.0 + 0.5 * uniform(&[seed, place, at, i]));
        (0..16).map(sample).collect::<Vec<f64>>()
    };
    let cached = 500 + 10 * seed;
    Speed {
        copy_bytes_per_second: Some(1e10 * (1.0 + uniform(&[seed, place, 30]))),
        prefill: [60, 120, 240]
            .map(|tokens| Prefill {
                tokens: tokens + seed as usize,
                seconds: samples(31 + tokens as u64, tokens as f64 * 1e-4),
            })
            .to_vec(),
        decode: [1, 4, 16]
            .map(|sequences| Decode {
                sequences,
                cached_tokens: 100 + seed as usize,
                seconds: samples(3 + sequences as u64, 0.002 + 0.0005 * sequences as f64),
            })
            .to_vec(),
        memory: Some(Memory {
            weights_bytes: 6_000_000 + seed + place,
            cache_bytes: 16 * 300 * cached,
            cache_bytes_per_token: cached,
            workspace_bytes: None,
            allocated_bytes: None,
            peak_bytes: None,
        }),
        ..Speed::default()
    }
}

fn item(recipe: &Recipe, index: usize, place: u64, stray: f64) -> Item {
    let (seed, i) = (recipe.seed, index as u64);
    let strays = uniform(&[seed, place, i, 4]) < stray;
    let score = |place| match uniform(&[seed, place, i, 5]) {
        u if u < 0.25 => 0.0,
        u if u < 0.7 => 1.0,
        u => u,
    };
    let f1 = if strays { score(place) } else { score(0) };
    let words = ["barn", "ferry", "goose", "lantern", "market"];
    let word = words[index % 5];
    let answer = if strays {
        format!("{word} {}", words[place as usize])
    } else {
        word.to_owned()
    };
    let story = index / recipe.turns;
    let text = |plain: &str| {
        recipe
            .text
            .map_or(plain.to_owned(), |t| format!("{t}{plain}"))
    };
    Item {
        index,
        id: format!("s{story}#{}", index % recipe.turns),
        story: format!("s{story}"),
        question: text("Where is it?"),
        references: vec![text("in the barn"), text("the barn")],
        prompt_tokens: 50,
        tokens: answer.bytes().map(u32::from).collect(),
        finish: Finish::Line,
        prediction: text(&answer),
        em: f64::from(f1 == 1.0),
        f1,
        em_any: f1 == 1.0,
        ceiling_f1: 0.9 + 0.1 * uniform(&[seed, i, 6]),
    }
}

fn forced(recipe: &Recipe, index: usize, place: u64, stray: f64) -> Forced {
    let (seed, i) = (recipe.seed, index as u64);
    let tokens = 20 + (i % 3) as usize;
    let kl = |t: u64| stray * 0.1 * uniform(&[seed, place, i, t, 7]);
    Forced {
        index,
        story: format!("s{index}"),
        tokens,
        nll: tokens as f64 * (1.0 + 0.1 * stray + 0.2 * uniform(&[seed, i, 8])),
        same_top: tokens - (stray * 10.0 * uniform(&[seed, place, i, 9])) as usize,
        logits_sha256: format!("{:016x}", seed ^ place ^ i),
        kl: match place {
            0 => Vec::new(),
            _ => (0..tokens as u64).map(kl).collect(),
        },
    }
}

/// All that a recipe gives.
pub fn everything(recipe: &Recipe) -> Records {
    Records {
        evaluations: records(recipe),
        benches: benches(recipe),
    }
}

/// Writes `records` into `dir` as files of one record each.
pub fn write(dir: &Path, records: &[Record]) {
    fs::create_dir_all(dir).unwrap();
    for record in records {
        let path = Record::path(dir, &record.head.setup);
        fs::write(path, serde_json::to_string(record).unwrap()).unwrap();
    }
}
