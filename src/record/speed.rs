//! How fast a model ran: raw samples, and what the device was measured to be
//! capable of, so that a share of its limit can be given.

use serde::{Deserialize, Serialize};

/// What is measured, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Lengths of prompts.
    pub prefill_tokens: Vec<usize>,
    /// Numbers of sequences that decode together.
    pub batches: Vec<usize>,
    /// Tokens that each sequence holds before it decodes.
    pub cached_tokens: usize,
    /// Repetitions that count, after one that does not.
    pub repetitions: usize,
    /// Decode steps in one repetition.
    pub steps: usize,
    /// Length of a window of energy, in seconds; 0 for none.
    pub energy_seconds: f64,
    /// Prompts of the lengths of CoQA's that are read and continued as a whole;
    /// 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub documents: usize,
    /// Stories of the lengths of CoQA's, all of whose turns are asked; 0 for
    /// none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stories: usize,
}

impl Plan {
    /// What a bench has its steps find in the cache if nobody asks for another
    /// number.
    pub const CACHED_TOKENS: usize = 128;
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Speed of one model in one format on one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Bytes read and written a second by a large copy within the memory of the
    /// device that ran the model: the median of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_bytes_per_second: Option<f64>,
    /// Operations a second (a multiplication and an addition are two) of a
    /// large FP16 matrix product. None on the CPU, which has no such unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops_per_second: Option<f64>,
    /// By rising number of tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefill: Vec<Prefill>,
    /// By rising number of sequences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decode: Vec<Decode>,
    /// By rising number of sequences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub energy: Vec<Energy>,
    /// Why there is no energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_missing: Option<String>,
    /// Many prompts at once, once; none where nobody asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<Documents>,
    /// All turns of many stories, once; none where nobody asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<AllTurns>,
    /// After all other measurements, so that a peak is the peak of them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Before and after the measurements. Empty on the CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub card: Vec<CardState>,
}

/// One sequence from an empty slot to its first new token (TTFT).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// One a repetition.
    pub seconds: Vec<f64>,
}

/// One more token for each of several sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    pub sequences: usize,
    /// Tokens that each sequence held before the first step of a repetition; a
    /// later step finds one more for each step before it.
    pub cached_tokens: usize,
    /// One a step of all sequences.
    pub seconds: Vec<f64>,
}

/// Prompts of different lengths, read and continued on all slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Documents {
    pub count: usize,
    /// Of all prompts together.
    pub prompt_tokens: usize,
    /// Of each.
    pub new_tokens: usize,
    /// For all, once, after a run that does not count.
    pub seconds: f64,
}

/// Every turn of several stories, asked on all slots; the turns of a story in
/// one slot, from one cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllTurns {
    pub stories: usize,
    /// Turns of all stories together.
    pub count: usize,
    /// Of the prompts of all last turns together. Those of the other turns are
    /// beginnings of these.
    pub prompt_tokens: usize,
    /// Of each turn.
    pub new_tokens: usize,
    /// For all, once, after a run that does not count.
    pub seconds: f64,
}

/// A window of several seconds filled with decode steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Energy {
    pub sequences: usize,
    /// Used by the whole device within the window.
    pub joules: f64,
    /// Length of the window.
    pub seconds: f64,
    /// Tokens that steps decoded within it, all sequences together. The one that
    /// each repetition runs again to start from the same cache is not counted.
    pub tokens: usize,
}

/// Bytes that an engine holds in the memory of its device. What an engine does
/// not count is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The weights as they are held, packed, with their quantisation state.
    pub weights_bytes: u64,
    /// Keys and values of all slots, used or not.
    pub cache_bytes: u64,
    /// Of these, what one token of one sequence takes and a later step reads.
    pub cache_bytes_per_token: u64,
    /// Activations, logits and other scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_bytes: Option<u64>,
    /// All that the engine has asked the device for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// The most that was allocated at once, loading included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

/// How a GPU was doing at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardState {
    pub sm_clock_mhz: u32,
    pub memory_clock_mhz: u32,
    pub temperature_celsius: u32,
    pub power_watts: f64,
}

/// A GPU and the software that drives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    pub name: String,
    /// Version of the driver.
    pub driver: String,
    /// Version of CUDA.
    pub cuda: String,
    pub memory_bytes: u64,
    /// Such as `9.0`.
    pub compute_capability: String,
}
