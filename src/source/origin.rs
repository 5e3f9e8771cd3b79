//! Where a model's tensors come from: a checkpoint, or a seed.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Standard deviation of random weights, as transformers initialises a Llama.
const DEVIATION: f32 = 0.02;
/// Standard deviation of a sum of four uniform 16-bit numbers.
const SUM_DEVIATION: f32 = 37_837.227;

/// Which weights a model is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Those of the checkpoint folder.
    Checkpoint,
    /// Drawn from a seed, the same at every run and on every device: speed does
    /// not depend on what they are, so a configuration is enough to measure it.
    Random { seed: u64 },
}

impl FromStr for Weights {
    type Err = Error;

    /// `checkpoint`, `random` or `random:SEED`.
    fn from_str(text: &str) -> Result<Self> {
        let seed = text
            .strip_prefix("random:")
            .and_then(|seed| seed.parse().ok());
        match (text, seed) {
            ("checkpoint", _) => Ok(Self::Checkpoint),
            ("random", _) => Ok(Self::Random { seed: 0 }),
            (_, Some(seed)) => Ok(Self::Random { seed }),
            _ => Err(Error::usage(
                "--weights",
                "checkpoint, random or random:SEED",
                format!("`{text}`"),
                "use one of these",
            )),
        }
    }
}

impl fmt::Display for Weights {
    /// The text that is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint => f.pad("checkpoint"),
            Self::Random { seed } => f.pad(&format!("random:{seed}")),
        }
    }
}

/// The tensors of one model.
pub enum Origin {
    Stored(Checkpoint),
    /// Normally distributed weights that depend on the seed, the tensor's name
    /// and the element's place only; norms are 1. For what does not depend on
    /// the numbers: size, speed, repeatability.
    Random {
        seed: u64,
    },
}

impl Origin {
    /// The weights of the checkpoint folder `dir`, or random ones.
    pub fn open(dir: &Path, weights: Weights) -> Result<Self> {
        Ok(match weights {
            Weights::Checkpoint => Self::Stored(Checkpoint::open(dir)?),
            Weights::Random { seed } => Self::Random { seed },
        })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Stored(checkpoint) => checkpoint.contains(name),
            Self::Random { .. } => true,
        }
    }

    /// The tensor `name` of `shape` in half precision.
    pub fn f16(&self, name: &str, shape: &[usize]) -> Result<Vec<f16>> {
        let seed = match self {
            Self::Stored(checkpoint) => return checkpoint.tensor(name, shape)?.to_f16(),
            Self::Random { seed } => *seed,
        };
        let count: usize = shape.iter().product();
        Ok(match random_start(seed, name) {
            Some(start) => (0..count as u64)
                .into_par_iter()
                .map(|i| random(start, i))
                .collect(),
            None => vec![f16::ONE; count],
        })
    }
}

/// Factor from the centred sum of four 16-bit numbers to a weight.
pub fn random_scale() -> f32 {
    DEVIATION / SUM_DEVIATION
}

/// Where the counter of a random tensor starts; none for a norm, which is 1.
pub fn random_start(seed: u64, name: &str) -> Option<u64> {
    if name.ends_with("norm.weight") {
        return None;
    }
    // FNV-1a of the name, so that each tensor has a stream of its own.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Some(mixed(seed ^ hash))
}

/// Element `i` of the random tensor that starts at `start`.
pub fn random(start: u64, i: u64) -> f16 {
    let z = mixed(start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum: u64 = (0..4).map(|part| z >> (16 * part) & 0xffff).sum();
    f16::from_f32((sum as f32 - 131_070.0) * random_scale())
}

/// The mixing function of SplitMix64 (Steele et al. 2014).
fn mixed(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::{random, random_start};

    #[test]
    fn random_weights_have_the_deviation_they_should() {
        let start = random_start(7, "model.embed_tokens.weight").expect("no norm");
        let n = 100_000;
        let values = || (0..n).map(|i| random(start, i).to_f64());
        let mean = values().sum::<f64>() / n as f64;
        let deviation = (values().map(|v| v * v).sum::<f64>() / n as f64).sqrt();
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((deviation - 0.02).abs() < 3e-4, "{deviation}");
        assert_eq!(random_start(7, "model.norm.weight"), None);
    }
}
