//! The table of experiments: what is compared, written down before any run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::coqa::Turns;
use crate::error::{Error, Result};
use crate::quant::{Code4, Compute, Format};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experiment {
    /// As in the original study where it has the experiment.
    pub name: &'static str,
    /// How the linears of the decoder layers are stored.
    pub format: Format,
    /// What weights are rounded to before they are multiplied.
    pub compute: Compute,
    /// Sequences run together on the CPU; on a GPU [`GPU_FACTOR`] times as many.
    /// It changes no bit of any result; the control runs the baseline's format
    /// with another number to show it.
    pub slots: usize,
    /// The least share of a GPU's measured copy bandwidth that decoding one
    /// sequence with weights in its memory must reach: what an NVIDIA H200
    /// reached, less a tenth to a fifth.
    pub bandwidth_share: f64,
    /// Part of the comparison that runs when nothing is asked for.
    pub default: bool,
}

/// How many times as many sequences a GPU runs together as a CPU.
pub const GPU_FACTOR: usize = 32;

/// The experiment that the others are compared with.
pub const BASELINE: &str = "fp16_baseline";

/// The baseline's format once more: what a comparison shows where there is
/// nothing to find.
pub const CONTROL: &str = "fp16_control";

/// Every experiment, in the order of reports.
pub const EXPERIMENTS: [Experiment; 7] = [
    Experiment {
        name: BASELINE,
        format: Format::Fp16,
        compute: Compute::F16,
        slots: 16,
        bandwidth_share: 0.62,
        default: true,
    },
    Experiment {
        name: CONTROL,
        format: Format::Fp16,
        compute: Compute::F16,
        slots: 5,
        bandwidth_share: 0.62,
        default: true,
    },
    Experiment {
        name: "bnb_8bit",
        format: Format::Int8 { threshold: 6.0 },
        compute: Compute::F16,
        slots: 16,
        bandwidth_share: 0.45,
        default: true,
    },
    Experiment {
        name: "bnb_4bit_nf4",
        format: Format::bnb4(Code4::Nf4, true),
        compute: Compute::F16,
        slots: 16,
        bandwidth_share: 0.35,
        default: true,
    },
    Experiment {
        name: "bnb_4bit_fp4",
        format: Format::bnb4(Code4::Fp4, true),
        compute: Compute::F16,
        slots: 16,
        bandwidth_share: 0.35,
        default: true,
    },
    Experiment {
        name: "bnb_4bit_nf4_no_double",
        format: Format::bnb4(Code4::Nf4, false),
        compute: Compute::F16,
        slots: 16,
        bandwidth_share: 0.33,
        default: false,
    },
    Experiment {
        name: "bnb_4bit_nf4_bf16",
        format: Format::bnb4(Code4::Nf4, true),
        compute: Compute::Bf16,
        slots: 16,
        bandwidth_share: 0.28,
        default: false,
    },
];

impl Experiment {
    /// Sequences run together where `gpu` says whether a GPU does it.
    pub const fn slots(&self, gpu: bool) -> usize {
        if gpu {
            GPU_FACTOR * self.slots
        } else {
            self.slots
        }
    }

    /// The experiment of this name.
    pub fn named(name: &str) -> Result<Self> {
        let found = EXPERIMENTS.into_iter().find(|e| e.name == name);
        found.ok_or_else(|| {
            let known = EXPERIMENTS.map(|e| e.name).join(", ");
            Error::usage(
                "--experiment",
                format!("one of {known}"),
                format!("`{name}`"),
                "use one of these names, or --all",
            )
        })
    }
}

/// The answer to "is this format not worse than FP16 by more than the margin?",
/// from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// A loss of more than the margin is shown.
    Fail,
    /// Neither is shown: more items are needed.
    Inconclusive,
    /// A loss of the margin or more is ruled out.
    Pass,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fail => "FAIL",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Pass => "PASS",
        })
    }
}

/// The largest loss of F1 that is accepted, 0..1: what the number of questions
/// of CoQA's dev set can resolve under either choice of turns.
pub const fn margin(turns: Turns) -> f64 {
    match turns {
        Turns::Last => 0.03,
        Turns::All => 0.01,
    }
}

/// A verdict expected of a comparison, committed beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Name of the checkpoint folder.
    pub model: &'static str,
    /// Name of the data set file.
    pub dataset: &'static str,
    pub turns: Turns,
    pub experiment: &'static str,
    pub verdict: Verdict,
}

/// The verdicts expected of whole data sets. What a tiny model loses to FP4 is
/// a finding, not a broken build.
pub const EXPECTED: [Expected; 10] = [
    embedded(Turns::Last, "bnb_8bit", Verdict::Pass),
    embedded(Turns::Last, "bnb_4bit_nf4", Verdict::Pass),
    embedded(Turns::Last, "bnb_4bit_fp4", Verdict::Pass),
    embedded(Turns::Last, "bnb_4bit_nf4_no_double", Verdict::Pass),
    embedded(Turns::Last, "bnb_4bit_nf4_bf16", Verdict::Pass),
    embedded(Turns::All, "bnb_8bit", Verdict::Pass),
    embedded(Turns::All, "bnb_4bit_nf4", Verdict::Pass),
    embedded(Turns::All, "bnb_4bit_fp4", Verdict::Inconclusive),
    embedded(Turns::All, "bnb_4bit_nf4_no_double", Verdict::Pass),
    embedded(Turns::All, "bnb_4bit_nf4_bf16", Verdict::Pass),
];

/// A row for the model and the data set that ship with the project.
const fn embedded(turns: Turns, experiment: &'static str, verdict: Verdict) -> Expected {
    Expected {
        model: "tiny-llama",
        dataset: "coqa-mini.jsonl",
        turns,
        experiment,
        verdict,
    }
}

/// The verdict expected of a comparison, if the table has it.
pub fn expected(model: &str, dataset: &str, turns: Turns, experiment: &str) -> Option<Verdict> {
    let key = (model, dataset, turns, experiment);
    let mut rows = EXPECTED.iter();
    rows.find(|e| (e.model, e.dataset, e.turns, e.experiment) == key)
        .map(|e| e.verdict)
}
