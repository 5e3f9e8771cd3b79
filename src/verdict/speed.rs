//! What raw samples of speed amount to.

use serde::{Deserialize, Serialize};

use super::stats::{self, Median};
use crate::error::Result;
use crate::quant::Format;
use crate::quant::size::Parts;
use crate::record::{self, CardState, Memory};

/// Confidence level of the interval of a median.
const LEVEL: f64 = 0.95;

/// The speed of one model in one format on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Bytes read and written a second by a large copy on the device.
    pub copy_bytes_per_second: Option<f64>,
    /// Operations a second of a large FP16 matrix product on the device.
    pub flops_per_second: Option<f64>,
    /// Bytes of weights that a decode step reads: all but the embedding, of
    /// which it reads a row a sequence, unless that is also the head.
    pub step_weights_bytes: u64,
    /// By rising number of tokens.
    pub prefill: Vec<Prefill>,
    /// By rising number of sequences.
    pub decode: Vec<Decode>,
    /// The decode of a single sequence, which is also in `decode`.
    pub single: Option<Decode>,
    /// The decode of the most sequences, unless that is one.
    pub largest: Option<Decode>,
    /// By rising number of sequences.
    pub energy: Vec<Energy>,
    /// A whole evaluation's prompts, read and continued; at most one.
    pub documents: Vec<Documents>,
    /// A whole evaluation's turns, asked; at most one.
    pub turns: Vec<AllTurns>,
    /// Why there is no energy.
    pub energy_missing: Option<String>,
    pub memory: Option<Memory>,
    /// Before and after the measurements.
    pub card: Vec<CardState>,
}

/// Repeated measurements of one time, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    #[serde(flatten)]
    pub median: Median,
    /// 95 of 100 measurements are no longer than this.
    pub p95: f64,
}

/// One sequence from an empty slot to its first new token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prefill {
    pub tokens: usize,
    pub seconds: Timing,
    pub tokens_per_second: f64,
    /// Multiplications and additions of the products with the weights, the head
    /// for the last token only; attention is not counted.
    pub operations: u64,
    /// `operations` in the time that they took, over what the measured matrix
    /// product does in it. None where that was not measured.
    pub arithmetic_share: Option<f64>,
}

/// One more token for each of several sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    pub sequences: usize,
    pub cached_tokens: usize,
    /// Of one step.
    pub seconds: Timing,
    /// Of all sequences together, with the limits that the median's give.
    pub tokens_per_second: f64,
    pub tokens_per_second_limits: Option<[f64; 2]>,
    /// What a step cannot do without: weights once, and the cached keys and
    /// values of every sequence where their size is known.
    pub bytes: u64,
    /// `bytes` in the median step over what the copy moves in that time.
    pub bandwidth_share: Option<f64>,
}

/// Prompts of different lengths, read and continued together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Documents {
    #[serde(flatten)]
    pub all: record::Documents,
    pub documents_per_second: f64,
}

/// Every turn of several stories, from one cache a story.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AllTurns {
    #[serde(flatten)]
    pub all: record::AllTurns,
    pub turns_per_second: f64,
}

/// What a window of decode steps used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    pub sequences: usize,
    pub joules_per_token: f64,
    pub watts: f64,
    /// Length of the window.
    pub seconds: f64,
}

/// What the samples of a model with these `parts`, its linears in `format`, say.
///
/// # Errors
/// None as long as the level of the intervals is one, see [`stats::median()`].
pub fn speed(format: Format, parts: Parts, samples: &record::Speed) -> Result<Speed> {
    let head = if parts.head == 0 {
        parts.embedding
    } else {
        parts.head
    };
    let step_weights_bytes = parts.linears + parts.state + parts.norms + head;
    let cached = samples.memory.map_or(0, |m| m.cache_bytes_per_token);
    let mut prefill = Vec::new();
    for record::Prefill { tokens, seconds } in &samples.prefill {
        let Some(seconds) = timing(seconds)? else {
            continue;
        };
        let operations = 2 * (*tokens as u64 * weights(format, parts.linears) + head / 2);
        let rate = operations as f64 / seconds.median.value;
        prefill.push(Prefill {
            tokens: *tokens,
            tokens_per_second: *tokens as f64 / seconds.median.value,
            operations,
            arithmetic_share: samples.flops_per_second.map(|flops| rate / flops),
            seconds,
        });
    }
    let mut decode = Vec::new();
    for samples_at in &samples.decode {
        let Some(seconds) = timing(&samples_at.seconds)? else {
            continue;
        };
        let sequences = samples_at.sequences;
        let held = sequences as u64 * samples_at.cached_tokens as u64;
        let bytes = step_weights_bytes + held * cached;
        let rate = |seconds: f64| sequences as f64 / seconds;
        let moved = |copy: f64| copy * seconds.median.value;
        decode.push(Decode {
            sequences,
            cached_tokens: samples_at.cached_tokens,
            tokens_per_second: rate(seconds.median.value),
            tokens_per_second_limits: seconds.median.limits.map(|[a, b]| [rate(b), rate(a)]),
            bytes,
            bandwidth_share: samples
                .copy_bytes_per_second
                .map(|copy| bytes as f64 / moved(copy)),
            seconds,
        });
    }
    let energy = samples.energy.iter().map(|window| Energy {
        sequences: window.sequences,
        joules_per_token: window.joules / window.tokens as f64,
        watts: window.joules / window.seconds,
        seconds: window.seconds,
    });
    let documents = samples.documents.iter().map(|all| Documents {
        documents_per_second: all.count as f64 / all.seconds,
        all: all.clone(),
    });
    let turns = samples.turns.iter().map(|all| AllTurns {
        turns_per_second: all.count as f64 / all.seconds,
        all: all.clone(),
    });
    let most = decode.iter().max_by_key(|d| d.sequences);
    Ok(Speed {
        copy_bytes_per_second: samples.copy_bytes_per_second,
        flops_per_second: samples.flops_per_second,
        step_weights_bytes,
        prefill,
        single: decode.iter().find(|d| d.sequences == 1).cloned(),
        largest: most.filter(|d| d.sequences > 1).cloned(),
        energy: energy.collect(),
        documents: documents.collect(),
        turns: turns.collect(),
        energy_missing: samples.energy_missing.clone(),
        memory: samples.memory,
        card: samples.card.clone(),
        decode,
    })
}

/// Weights in so many bytes of packed linears.
fn weights(format: Format, bytes: u64) -> u64 {
    match format {
        Format::Fp16 => bytes / 2,
        Format::Bnb4 { .. } => 2 * bytes,
        Format::Int8 { .. } => bytes,
    }
}

/// None of no measurements.
fn timing(seconds: &[f64]) -> Result<Option<Timing>> {
    let Some(median) = stats::median(seconds, LEVEL)? else {
        return Ok(None);
    };
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let p95 = sorted[(95 * sorted.len()).div_ceil(100) - 1];
    Ok(Some(Timing { median, p95 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(head: u64) -> Parts {
        Parts {
            embedding: 1000,
            head,
            norms: 10,
            linears: 500,
            state: 50,
        }
    }

    fn samples() -> record::Speed {
        record::Speed {
            copy_bytes_per_second: Some(1e6),
            prefill: vec![record::Prefill {
                tokens: 8,
                seconds: vec![0.004, 0.002, 0.003],
            }],
            decode: vec![record::Decode {
                sequences: 4,
                cached_tokens: 20,
                // 100 samples: 1, 2, ... 100 ms in another order.
                seconds: (0..100)
                    .map(|i| f64::from(1 + i * 37 % 100) / 1e3)
                    .collect(),
            }],
            energy: vec![record::Energy {
                sequences: 4,
                joules: 60.0,
                seconds: 2.0,
                tokens: 240,
            }],
            memory: Some(Memory {
                weights_bytes: 1570,
                cache_bytes: 800,
                cache_bytes_per_token: 8,
                workspace_bytes: None,
                allocated_bytes: None,
                peak_bytes: None,
            }),
            ..record::Speed::default()
        }
    }

    #[test]
    fn a_step_reads_the_weights_once_and_every_cached_token() {
        let tied = speed(Format::Fp16, parts(0), &samples()).expect("samples");
        assert_eq!(tied.step_weights_bytes, 1560);
        let untied = speed(Format::Fp16, parts(900), &samples()).expect("samples");
        assert_eq!(untied.step_weights_bytes, 1460);
        let decode = &tied.decode[0];
        assert_eq!(decode.bytes, 1560 + 4 * 20 * 8);
        // 2,200 bytes in 50.5 ms, of 50,500 that the copy moves.
        let share = decode.bandwidth_share.expect("a copy");
        assert!((share - 2200.0 / 50_500.0).abs() < 1e-12, "{share}");
    }

    #[test]
    fn prefill_counts_every_weight_twice_a_token_and_the_head_once() {
        let measured = record::Speed {
            flops_per_second: Some(1e6),
            ..samples()
        };
        let found = speed(Format::Fp16, parts(0), &measured).expect("samples");
        // 8 tokens by 250 weights, and 500 of the head, in 3 ms.
        assert_eq!(found.prefill[0].operations, 2 * (8 * 250 + 500));
        let share = found.prefill[0].arithmetic_share.expect("a product");
        assert!((share - 5000.0 / 3000.0).abs() < 1e-12, "{share}");
        let nf4 = Format::bnb4(crate::quant::Code4::Nf4, true);
        let found = speed(nf4, parts(0), &samples()).expect("samples");
        assert_eq!(found.prefill[0].operations, 2 * (8 * 1000 + 500));
        assert_eq!(found.prefill[0].arithmetic_share, None);
    }

    #[test]
    fn rates_come_from_the_median_and_their_limits_from_its_limits() {
        let found = speed(Format::Fp16, parts(0), &samples()).expect("samples");
        let decode = &found.decode[0];
        assert_eq!(decode.seconds.median.value, 0.0505);
        assert_eq!(decode.seconds.p95, 0.095);
        let [low, high] = decode.seconds.median.limits.expect("100 samples");
        let limits = decode.tokens_per_second_limits.expect("100 samples");
        assert_eq!(limits, [4.0 / high, 4.0 / low]);
        assert_eq!(found.prefill[0].tokens_per_second, 8.0 / 0.003);
        assert_eq!(found.prefill[0].seconds.p95, 0.004);
        assert_eq!((found.single, found.largest.as_ref()), (None, Some(decode)));
        let energy = &found.energy[0];
        assert_eq!((energy.joules_per_token, energy.watts), (0.25, 30.0));
    }

    #[test]
    fn what_was_not_measured_is_absent_and_not_zero() {
        let nothing = speed(Format::Fp16, parts(0), &record::Speed::default()).expect("nothing");
        assert!(nothing.decode.is_empty() && nothing.prefill.is_empty());
        assert!(nothing.single.is_none() && nothing.largest.is_none());
        let no_copy = record::Speed {
            copy_bytes_per_second: None,
            memory: None,
            ..samples()
        };
        let found = speed(Format::Fp16, parts(0), &no_copy).expect("samples");
        assert_eq!(found.decode[0].bandwidth_share, None);
        assert_eq!(found.decode[0].bytes, 1560);
    }
}
