//! How a model reads the gold text, token by token, and how far its
//! distributions are from the baseline's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::engine::math::arg_max;
use crate::engine::{Decoder, Segment};
use crate::error::Result;
use crate::record::Forced;
use crate::source::hex;

/// Tokens run in one call.
const CHUNK_TOKENS: usize = 128;
/// Baseline logits are kept up to so many bytes; the rest is computed again for
/// each experiment.
const KEPT_BYTES: usize = 1 << 30;

/// Why a lock is not poisoned.
pub(super) const WHOLE: &str = "nothing panics while it is held";

/// One story with its gold answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// Place among the stories of the run.
    pub index: usize,
    pub story: String,
    /// At least two.
    pub tokens: Vec<u32>,
}

/// The baseline's logits on the dialogues, kept from one experiment to the next;
/// shared by the threads of several engines.
#[derive(Default)]
pub struct Reference(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// By story, `[tokens - 1, vocab]`.
    logits: HashMap<String, Arc<Vec<f32>>>,
    bytes: usize,
}

/// What a model makes of one token, next to the baseline.
struct Token {
    nll: f64,
    same_top: bool,
    kl: f64,
}

impl Reference {
    /// Reads a dialogue with the baseline itself, in `slot`, which holds all
    /// its tokens but the last afterwards.
    pub fn remember(
        &self,
        baseline: &mut (impl Decoder + ?Sized),
        slot: usize,
        dialogue: &Dialogue,
    ) -> Result<Forced> {
        let logits = read(baseline, slot, &dialogue.tokens)?;
        let forced = Forced {
            kl: Vec::new(),
            ..held_against(&logits, &logits, dialogue)
        };
        let bytes = size_of_val(logits.as_slice());
        let mut kept = self.0.lock().expect(WHOLE);
        if kept.bytes + bytes <= KEPT_BYTES {
            kept.bytes += bytes;
            kept.logits.insert(dialogue.story.clone(), Arc::new(logits));
        }
        Ok(forced)
    }

    /// Reads a dialogue with `decoder` in `slot`, as [`Reference::remember`],
    /// and holds it against the baseline, which `read_baseline` runs if its
    /// logits are not at hand.
    pub fn compare(
        &self,
        decoder: &mut (impl Decoder + ?Sized),
        slot: usize,
        dialogue: &Dialogue,
        read_baseline: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Forced> {
        let kept = self.0.lock().expect(WHOLE);
        let kept = kept.logits.get(&dialogue.story).cloned();
        let baseline = kept.map_or_else(|| read_baseline().map(Arc::new), Ok)?;
        let logits = read(decoder, slot, &dialogue.tokens)?;
        Ok(held_against(&logits, &baseline, dialogue))
    }
}

/// Logits after every token but the last: `[tokens - 1, vocab]`.
pub fn read(
    decoder: &mut (impl Decoder + ?Sized),
    slot: usize,
    tokens: &[u32],
) -> Result<Vec<f32>> {
    let mut logits = Vec::with_capacity((tokens.len() - 1) * decoder.vocab());
    for (i, tokens) in tokens[..tokens.len() - 1].chunks(CHUNK_TOKENS).enumerate() {
        let start = i * CHUNK_TOKENS;
        logits.extend(decoder.logits(&[Segment {
            slot,
            start,
            tokens,
        }])?);
    }
    Ok(logits)
}

/// Holds logits `[tokens - 1, vocab]` against the baseline's, token by token.
fn tokens(logits: &[f32], baseline: &[f32], tokens: &[u32]) -> Vec<Token> {
    let vocab = logits.len() / (tokens.len() - 1);
    let rows = logits
        .par_chunks(vocab)
        .zip(baseline.par_chunks(vocab))
        .zip(&tokens[1..]);
    rows.map(|((logits, baseline), &next)| {
        let (q, p) = (LogSoftmax::of(logits), LogSoftmax::of(baseline));
        let kl = logits.iter().zip(baseline).map(|(&logit, &base)| {
            let log_p = p.at(base);
            libm::exp(log_p) * (log_p - q.at(logit))
        });
        Token {
            nll: -q.at(logits[next as usize]),
            same_top: arg_max(logits) == arg_max(baseline),
            // A sum of rounded terms may end a little below 0.
            kl: kl.sum::<f64>().max(0.0),
        }
    })
    .collect()
}

/// Logarithm of the softmax of one row of logits, in f64.
struct LogSoftmax {
    normaliser: f64,
}

impl LogSoftmax {
    fn of(logits: &[f32]) -> Self {
        let largest = f64::from(logits[arg_max(logits)]);
        let sum: f64 = logits
            .iter()
            .map(|&l| libm::exp(f64::from(l) - largest))
            .sum();
        Self {
            normaliser: largest + libm::log(sum),
        }
    }

    fn at(&self, logit: f32) -> f64 {
        f64::from(logit) - self.normaliser
    }
}

/// A reading with the logits `[tokens - 1, vocab]` next to the baseline's.
fn held_against(logits: &[f32], baseline: &[f32], dialogue: &Dialogue) -> Forced {
    let (tokens, logits_sha256) = rayon::join(
        || tokens(logits, baseline, &dialogue.tokens),
        || fingerprint(logits),
    );
    Forced {
        index: dialogue.index,
        story: dialogue.story.clone(),
        tokens: tokens.len(),
        nll: tokens.iter().map(|token| token.nll).sum(),
        same_top: tokens.iter().filter(|token| token.same_top).count(),
        logits_sha256,
        kl: tokens.iter().map(|token| five_digits(token.kl)).collect(),
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of `logits`, little-endian.
fn fingerprint(logits: &[f32]) -> String {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    // In parts, so that the bytes are not all held a second time.
    for part in logits.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(part.iter().flat_map(|logit| logit.to_le_bytes()));
        hash.update(&bytes);
    }
    hex(&hash.finalize()[..8])
}

/// `x` to five significant digits, which is what records keep.
fn five_digits(x: f64) -> f64 {
    format!("{x:.4e}")
        .parse()
        .expect("a number in scientific notation")
}
