//! A decoder without a model: the next token is a function of all tokens so
//! far, so that a wrong cache shows in what is generated.

#![allow(dead_code)] // Not every test file needs all of it.

use llama_quant::Result;
use llama_quant::engine::decoder::{check, step_segments};
use llama_quant::engine::{Decoder, Segment};

/// What a decoder was asked to run, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Prefill(Vec<Run>),
    /// `(slot, token)`.
    Step(Vec<(usize, u32)>),
}

/// A [`Segment`] that owns its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub slot: usize,
    pub start: usize,
    pub tokens: Vec<u32>,
}

pub struct Mock<F> {
    next: F,
    context: usize,
    vocab: usize,
    /// The sequence in each slot.
    sequences: Vec<Vec<u32>>,
    pub calls: Vec<Call>,
    /// Run steps beside the host, as a device does.
    pub beside: bool,
}

impl<F: Fn(&[u32]) -> Result<u32>> Mock<F> {
    pub fn new(slots: usize, context: usize, vocab: usize, next: F) -> Self {
        Self {
            next,
            context,
            vocab,
            sequences: vec![Vec::new(); slots],
            calls: Vec::new(),
            beside: false,
        }
    }

    /// The same decoder, running steps beside the host.
    pub fn beside(self, beside: bool) -> Self {
        Self { beside, ..self }
    }

    /// All segments of all prefills, in order.
    pub fn prefilled(&self) -> Vec<Run> {
        let runs = self.calls.iter().filter_map(|call| match call {
            Call::Prefill(runs) => Some(runs.clone()),
            Call::Step(_) => None,
        });
        runs.flatten().collect()
    }

    fn run(&mut self, segments: &[Segment<'_>]) -> Result<Vec<u32>> {
        check(self, segments)?;
        segments
            .iter()
            .map(|segment| {
                let sequence = &mut self.sequences[segment.slot];
                sequence.truncate(segment.start);
                sequence.extend_from_slice(segment.tokens);
                (self.next)(sequence)
            })
            .collect()
    }
}

impl<F: Fn(&[u32]) -> Result<u32>> Decoder for Mock<F> {
    fn slots(&self) -> usize {
        self.sequences.len()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn held(&self, slot: usize) -> usize {
        self.sequences[slot].len()
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn prefill(&mut self, segments: &[Segment<'_>]) -> Result<Vec<u32>> {
        let runs = segments.iter().map(|segment| Run {
            slot: segment.slot,
            start: segment.start,
            tokens: segment.tokens.to_vec(),
        });
        self.calls.push(Call::Prefill(runs.collect()));
        self.run(segments)
    }

    fn logits(&mut self, _: &[Segment<'_>]) -> Result<Vec<f32>> {
        unimplemented!("generation never asks for logits")
    }

    fn runs_beside_host(&self) -> bool {
        self.beside
    }

    fn step_beside(
        &mut self,
        rows: &[(usize, u32)],
        beside: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<u32>> {
        // The device is done before the host is: the order that could do harm.
        let next = self.step(rows)?;
        beside()?;
        Ok(next)
    }

    fn step(&mut self, rows: &[(usize, u32)]) -> Result<Vec<u32>> {
        self.calls.push(Call::Step(rows.to_vec()));
        let segments = step_segments(rows, |slot| self.held(slot));
        self.run(&segments)
    }
}
