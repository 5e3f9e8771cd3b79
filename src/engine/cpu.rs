//! The reference engine: a Llama on candle tensors, f32 arithmetic on the
//! host, packed weights. It reads like the paper; speed comes from
//! [`crate::quant::product`] alone.

use std::ops::Range;

use candle_core::{Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::decoder::{Decoder, Segment, check, count};
use super::llama::{Layer, Llama};
use super::math::{LANES, Rope, arg_max, dot, exponentials, rms_norm, swiglu};
use crate::error::{Error, Result};
use crate::quant::{Fp16, Weight};
use crate::record::Memory;

/// A model with its key-value cache.
pub struct CpuEngine {
    model: Llama,
    rope: Rope,
    /// One a layer.
    caches: Vec<Cache>,
    /// Tokens held, one a slot.
    held: Vec<usize>,
    context: usize,
}

/// Keys and values of one layer, allocated once: `[slots, context, kv_heads * head_dim]`.
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Where a token of a call stands.
#[derive(Clone, Copy)]
struct Place {
    slot: usize,
    position: usize,
}

impl CpuEngine {
    /// An engine for `slots` sequences of at most `context` tokens.
    pub fn new(model: Llama, slots: usize, context: usize) -> Self {
        let kv = model.config.kv_heads * model.config.head_dim;
        let cache = || Cache {
            keys: vec![0.0; slots * context * kv],
            values: vec![0.0; slots * context * kv],
        };
        Self {
            rope: Rope::new(&model.config, context),
            caches: (0..model.config.layers).map(|_| cache()).collect(),
            held: vec![0; slots],
            context,
            model,
        }
    }

    /// The weights this engine runs.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// Runs all tokens and returns the last layer's output, `[tokens, hidden]`,
    /// before the final norm.
    fn run(&mut self, segments: &[Segment<'_>]) -> Result<Tensor> {
        check(self, segments)?;
        let mut places = Vec::new();
        let mut tokens = Vec::new();
        for segment in segments {
            let (slot, start) = (segment.slot, segment.start);
            places.extend(
                (start..start + segment.tokens.len()).map(|position| Place { slot, position }),
            );
            tokens.extend_from_slice(segment.tokens);
        }
        let x = self.embed(&tokens).and_then(|x| self.layers(x, &places));
        count(&mut self.held, segments, x.is_ok());
        x.map_err(|e| Error::engine("running the layers on the CPU", e))
    }

    fn embed(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let table = &self.model.embedding;
        let mut x = vec![0.0; tokens.len() * table.columns];
        for (row, &token) in x.chunks_mut(table.columns).zip(tokens) {
            table.row(token as usize, row);
        }
        matrix(x, tokens.len())
    }

    fn layers(&mut self, mut x: Tensor, places: &[Place]) -> candle_core::Result<Tensor> {
        let Self {
            model,
            rope,
            caches,
            context,
            ..
        } = self;
        let eps = model.config.rms_norm_eps;
        for (layer, cache) in model.layers.iter().zip(caches) {
            let shape = Heads {
                heads: model.config.heads,
                kv_heads: model.config.kv_heads,
                head_dim: model.config.head_dim,
                context: *context,
            };
            let h = norm(&x, &layer.input_norm, eps)?;
            x = (x + attention(layer, &h, cache, shape, rope, places)?)?;
            let h = norm(&x, &layer.post_attention_norm, eps)?;
            x = (x + feed_forward(layer, &h)?)?;
        }
        Ok(x)
    }

    /// Logits after the given rows of `x [tokens, hidden]`: `[rows, vocab]`.
    fn head(&self, x: &Tensor, rows: &[u32]) -> Result<Vec<f32>> {
        let logits = || {
            let rows = Tensor::new(rows, &Device::Cpu)?;
            let x = x.index_select(&rows, 0)?;
            let x = norm(&x, &self.model.norm, self.model.config.rms_norm_eps)?;
            numbers(&x)
        };
        let x = logits().map_err(|e| Error::engine("running the head on the CPU", e))?;
        Ok(Fp16::product(self.model.head(), &x))
    }
}

impl Decoder for CpuEngine {
    fn slots(&self) -> usize {
        self.held.len()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn held(&self, slot: usize) -> usize {
        self.held[slot]
    }

    fn vocab(&self) -> usize {
        self.model.config.vocab
    }

    fn prefill(&mut self, segments: &[Segment<'_>]) -> Result<Vec<u32>> {
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let x = self.run(segments)?;
        let mut end = 0;
        let last = segments.iter().map(|segment| {
            end += segment.tokens.len() as u32;
            end - 1
        });
        let logits = self.head(&x, &last.collect::<Vec<_>>())?;
        let next = logits
            .par_chunks(self.vocab())
            .map(|row| arg_max(row) as u32);
        Ok(next.collect())
    }

    fn logits(&mut self, segments: &[Segment<'_>]) -> Result<Vec<f32>> {
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let x = self.run(segments)?;
        let tokens = segments.iter().map(|s| s.tokens.len() as u32).sum();
        self.head(&x, &(0..tokens).collect::<Vec<_>>())
    }

    fn memory(&self) -> Option<Memory> {
        let config = &self.model.config;
        let norms = (2 * config.layers + 1) * config.hidden;
        let cached = 2 * config.layers * config.kv_heads * config.head_dim * size_of::<f32>();
        Some(Memory {
            // Norms are held as f32, twice the bytes that a checkpoint has.
            weights_bytes: self.model.bytes().with_state + 2 * norms as u64,
            cache_bytes: (self.slots() * self.context * cached) as u64,
            cache_bytes_per_token: cached as u64,
            workspace_bytes: None,
            allocated_bytes: None,
            peak_bytes: None,
        })
    }
}

/// `[rows, …]` from the numbers of all rows.
fn matrix(values: Vec<f32>, rows: usize) -> candle_core::Result<Tensor> {
    let columns = values.len() / rows;
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

/// All numbers of a tensor, row-major.
fn numbers(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

fn norm(x: &Tensor, weight: &[f32], eps: f32) -> candle_core::Result<Tensor> {
    let (tokens, hidden) = x.dims2()?;
    let x = numbers(x)?;
    let mut y = vec![0.0; x.len()];
    let rows = x.par_chunks(hidden).zip(y.par_chunks_mut(hidden));
    rows.for_each(|(x, y)| rms_norm(x, weight, eps, y));
    matrix(y, tokens)
}

/// `x [tokens, in]` times the transposed weight: `[tokens, out]`.
fn linear(weight: &Weight, x: &Tensor) -> candle_core::Result<Tensor> {
    matrix(weight.product(&numbers(x)?), x.dim(0)?)
}

/// [`swiglu`] of one token, compiled once for each vector width.
struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl WithSimd for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        swiglu(self.gate, self.up);
    }
}

fn feed_forward(layer: &Layer, h: &Tensor) -> candle_core::Result<Tensor> {
    let (tokens, _) = h.dims2()?;
    let mut gate = numbers(&linear(&layer.gate, h)?)?;
    let up = numbers(&linear(&layer.up, h)?)?;
    let width = gate.len() / tokens;
    let rows = gate.par_chunks_mut(width).zip(up.par_chunks(width));
    let arch = Arch::new();
    rows.for_each(|(gate, up)| arch.dispatch(SwiGlu { gate, up }));
    linear(&layer.down, &matrix(gate, tokens)?)
}

/// How queries, keys and values lie in memory.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context: usize,
}

impl Heads {
    /// Where a token's keys or values lie in a [`Cache`].
    fn cached(&self, Place { slot, position }: Place) -> Range<usize> {
        let width = self.kv_heads * self.head_dim;
        let start = (slot * self.context + position) * width;
        start..start + width
    }
}

/// Causal grouped-query attention of `h [tokens, hidden]`, with the tokens'
/// keys and values added to the cache first.
fn attention(
    layer: &Layer,
    h: &Tensor,
    cache: &mut Cache,
    shape: Heads,
    rope: &Rope,
    places: &[Place],
) -> candle_core::Result<Tensor> {
    let mut q = numbers(&linear(&layer.q, h)?)?;
    let mut k = numbers(&linear(&layer.k, h)?)?;
    let v = numbers(&linear(&layer.v, h)?)?;
    let q_width = shape.heads * shape.head_dim;
    let kv_width = shape.kv_heads * shape.head_dim;
    for (i, &place) in places.iter().enumerate() {
        let k = &mut k[i * kv_width..(i + 1) * kv_width];
        for head in q[i * q_width..(i + 1) * q_width].chunks_mut(shape.head_dim) {
            rope.rotate(head, place.position);
        }
        for head in k.chunks_mut(shape.head_dim) {
            rope.rotate(head, place.position);
        }
        cache.keys[shape.cached(place)].copy_from_slice(k);
        cache.values[shape.cached(place)].copy_from_slice(&v[i * kv_width..(i + 1) * kv_width]);
    }
    let mut out = vec![0.0; q.len()];
    let arch = Arch::new();
    let rows = out
        .par_chunks_mut(q_width)
        .zip(q.par_chunks(q_width))
        .zip(places);
    rows.for_each_init(Vec::new, |scores, ((out, q), &place)| {
        arch.dispatch(Attend {
            out,
            q,
            cache,
            shape,
            place,
            scores,
        });
    });
    linear(&layer.o, &matrix(out, places.len())?)
}

/// One token's attention over the positions up to its own, compiled once for
/// each vector width.
struct Attend<'a> {
    /// `[heads * head_dim]`.
    out: &'a mut [f32],
    q: &'a [f32],
    cache: &'a Cache,
    shape: Heads,
    place: Place,
    /// Scratch for the weights of one head.
    scores: &'a mut Vec<f32>,
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self {
            out,
            q,
            cache,
            shape,
            place,
            scores,
        } = self;
        let head_dim = shape.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let group = shape.heads / shape.kv_heads;
        let first = shape
            .cached(Place {
                position: 0,
                ..place
            })
            .start;
        let past = first..shape.cached(place).end;
        let width = shape.kv_heads * head_dim;
        scores.resize(place.position + 1, 0.0);
        for (head, (out, q)) in out.chunks_mut(head_dim).zip(q.chunks(head_dim)).enumerate() {
            let at = head / group * head_dim;
            let keys = cache.keys[past.clone()].chunks(width);
            for (score, key) in scores.iter_mut().zip(keys) {
                *score = dot(q, &key[at..at + head_dim]) * scale;
            }
            let sum = exponentials(scores);
            // A few outputs at a time, so that their sums stay in registers.
            let values = || scores.iter().zip(cache.values[past.clone()].chunks(width));
            let (whole, rest) = out.as_chunks_mut::<LANES>();
            let after = at + whole.len() * LANES;
            for (i, out) in whole.iter_mut().enumerate() {
                let mut sums = [0.0_f32; LANES];
                for (weight, value) in values() {
                    let (value, _) = value[at + i * LANES..].as_chunks::<LANES>();
                    for j in 0..LANES {
                        sums[j] += weight * value[0][j];
                    }
                }
                *out = sums.map(|weighted| weighted / sum);
            }
            for (i, out) in rest.iter_mut().enumerate() {
                let weighted = values().map(|(weight, value)| weight * value[after + i]);
                *out = weighted.fold(0.0, |sum, term| sum + term) / sum;
            }
        }
    }
}
