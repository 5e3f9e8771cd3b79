//! The trait that engines implement.

use crate::error::{Error, Result};
use crate::record::Memory;

/// Tokens to append to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Which sequence, below [`Decoder::slots`].
    pub slot: usize,
    /// How many tokens of the slot's cache come before; what lies beyond is
    /// dropped. 0 starts a new sequence.
    pub start: usize,
    /// At least one.
    pub tokens: &'a [u32],
}

/// A Llama with a cache of several sequences.
///
/// A sequence's results do not depend, to the bit, on the other segments of a
/// call, on their order, on its slot, or on how its tokens are cut into calls.
pub trait Decoder {
    /// Sequences that can be held at once.
    fn slots(&self) -> usize;

    /// Tokens that one slot can hold.
    fn context(&self) -> usize;

    /// Tokens that slot `slot` holds now.
    fn held(&self, slot: usize) -> usize;

    /// Size of the vocabulary: the length of one row of logits.
    fn vocab(&self) -> usize;

    /// Runs the segments, each for a slot of its own, and returns the likeliest
    /// next token after each one's last (the lowest id among equals).
    fn prefill(&mut self, segments: &[Segment<'_>]) -> Result<Vec<u32>>;

    /// Runs the segments and returns the logits after every one of their
    /// tokens: `[tokens of all segments in order, vocab]`.
    fn logits(&mut self, segments: &[Segment<'_>]) -> Result<Vec<f32>>;

    /// One more token for each `(slot, token)`.
    fn step(&mut self, rows: &[(usize, u32)]) -> Result<Vec<u32>> {
        let segments = step_segments(rows, |slot| self.held(slot));
        self.prefill(&segments)
    }

    /// Whether the host is free while a step runs. If so, [`generate`] looks at
    /// the tokens of one step while the next one runs, at the price of a step
    /// for sequences that have just ended.
    ///
    /// [`generate`]: super::generate::generate
    fn runs_beside_host(&self) -> bool {
        false
    }

    /// As [`Decoder::step`]; calls `beside` once, while the step runs if the
    /// engine can do that. Its error is returned after the step has ended.
    fn step_beside(
        &mut self,
        rows: &[(usize, u32)],
        beside: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<u32>> {
        beside()?;
        self.step(rows)
    }

    /// Prompt tokens that one call best takes at once; more are served too.
    fn chunk_tokens(&self) -> usize {
        512
    }

    /// What the engine holds on its device now; none if it does not count.
    fn memory(&self) -> Option<Memory> {
        None
    }
}

/// A decoder that any thread can run.
pub type AnyDecoder = dyn Decoder + Send;

/// The rows `(slot, token)` of a step as segments: one token each, after what
/// its slot holds.
pub fn step_segments(rows: &[(usize, u32)], held: impl Fn(usize) -> usize) -> Vec<Segment<'_>> {
    rows.iter()
        .map(|(slot, token)| Segment {
            slot: *slot,
            start: held(*slot),
            tokens: std::slice::from_ref(token),
        })
        .collect()
}

/// Keeps count of what slots hold after a call; after a failure a slot holds
/// what comes before its segment.
pub fn count(held: &mut [usize], segments: &[Segment<'_>], ran: bool) {
    for segment in segments {
        let new = if ran { segment.tokens.len() } else { 0 };
        held[segment.slot] = segment.start + new;
    }
}

/// Refuses segments that an engine could not run.
pub fn check(decoder: &(impl Decoder + ?Sized), segments: &[Segment<'_>]) -> Result<()> {
    let mut used = vec![false; decoder.slots()];
    for &Segment {
        slot,
        start,
        tokens,
    } in segments
    {
        let refuse = |wanted: String, found: String, remedy: &str| {
            Err(Error::usage(
                format!("segment for slot {slot}"),
                wanted,
                found,
                remedy,
            ))
        };
        if slot >= used.len() {
            return refuse(
                format!("a slot below {}", used.len()),
                slot.to_string(),
                "make the engine with more slots",
            );
        }
        if std::mem::replace(&mut used[slot], true) {
            return refuse(
                "one segment a slot".into(),
                "two".into(),
                "run them in two calls",
            );
        }
        let held = decoder.held(slot);
        if start > held {
            return refuse(
                format!("a start of at most {held}, the tokens held"),
                start.to_string(),
                "run the tokens before it first",
            );
        }
        if tokens.is_empty() {
            return refuse(
                "at least one token".into(),
                "none".into(),
                "leave the segment out",
            );
        }
        if start + tokens.len() > decoder.context() {
            return refuse(
                format!("at most {} tokens, the context", decoder.context()),
                (start + tokens.len()).to_string(),
                "make the engine with a longer context or shorten the text",
            );
        }
        if let Some(token) = tokens
            .iter()
            .find(|&&token| token as usize >= decoder.vocab())
        {
            return refuse(
                format!("token ids below the vocabulary of {}", decoder.vocab()),
                token.to_string(),
                "use the tokenizer that belongs to the checkpoint",
            );
        }
    }
    Ok(())
}
