//! NF4 and FP4 as bitsandbytes stores them, with and without double
//! quantisation (QLoRA, Dettmers et al. 2023). Blocks run over the flattened
//! `[out, in]` weight; two codes a byte, the first in the high nibble.

use std::ops::Range;

use rayon::prelude::*;

use super::codebook::{DYNAMIC_MAP, nearest_dynamic};
use super::product::{Panel, TILE, product};
use super::{Bytes, Code4, Compute};

/// Absmax values quantised together under double quantisation.
pub const NESTED_BLOCK: usize = 256;

/// The largest magnitude of each block, as stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// f32, one a block.
    Plain(Vec<f32>),
    /// `DYNAMIC_MAP[code] * nested_absmax + offset`.
    Double {
        /// One a block.
        codes: Vec<u8>,
        /// One for every [`NESTED_BLOCK`] blocks.
        nested_absmax: Vec<f32>,
        /// The mean of all absmax values.
        offset: f32,
    },
}

impl Absmax {
    /// Stores `absmax` in 8 bits a value.
    ///
    /// The mean is an f64 sum over nested blocks, each summed on its own first:
    /// an order that a parallel implementation can follow to the bit. With a
    /// single value the rest is 0 and any code would do; it gets the code of 0.
    pub fn double(absmax: &[f32]) -> Self {
        let total: f64 = absmax
            .chunks(NESTED_BLOCK)
            .map(|block| block.iter().map(|&a| f64::from(a)).sum::<f64>())
            .sum();
        let offset = (total / absmax.len().max(1) as f64) as f32;
        let mut codes = Vec::with_capacity(absmax.len());
        let mut nested_absmax = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK));
        for block in absmax.chunks(NESTED_BLOCK) {
            let largest = block
                .iter()
                .fold(0.0_f32, |m, &a| m.max((a - offset).abs()));
            let reciprocal = if largest > 0.0 { 1.0 / largest } else { 0.0 };
            codes.extend(
                block
                    .iter()
                    .map(|&a| nearest_dynamic((a - offset) * reciprocal)),
            );
            nested_absmax.push(largest);
        }
        Self::Double {
            codes,
            nested_absmax,
            offset,
        }
    }

    /// The scale of block `i` as the products use it.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::Plain(values) => values[i],
            Self::Double {
                codes,
                nested_absmax,
                offset,
            } => DYNAMIC_MAP[codes[i] as usize] * nested_absmax[i / NESTED_BLOCK] + offset,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Plain(values) => 4 * values.len() as u64,
            Self::Double {
                codes,
                nested_absmax,
                ..
            } => (codes.len() + 4 * nested_absmax.len() + 4) as u64,
        }
    }
}

/// A 4-bit weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Bnb4 {
    pub code: Code4,
    /// Weights that share one absmax.
    pub block: usize,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// `ceil(rows * columns / 2)` bytes; a missing last code is the code of 0.
    pub packed: Vec<u8>,
    pub absmax: Absmax,
    /// What weights are rounded to before they are multiplied.
    pub compute: Compute,
}

impl Bnb4 {
    /// Packs `values` (`[rows, columns]`, finite).
    ///
    /// A block of zeros gets the code whose value is 0. The reference gives it
    /// code 0 whatever that stands for, since a NaN falls through its
    /// comparisons; under double quantisation its zeros come back as non-zeros.
    pub fn quantise(
        code: Code4,
        block: usize,
        double_quant: bool,
        values: &[f32],
        rows: usize,
        columns: usize,
    ) -> Self {
        // Blocks hold an even number of weights, so each owns whole bytes.
        let mut packed = vec![0_u8; values.len().div_ceil(2)];
        let absmax: Vec<f32> = values
            .par_chunks(block)
            .zip(packed.par_chunks_mut(block / 2))
            .map(|(values, packed)| quantise_block(code, values, packed))
            .collect();
        let absmax = if double_quant {
            Absmax::double(&absmax)
        } else {
            Absmax::Plain(absmax)
        };
        Self {
            code,
            block,
            rows,
            columns,
            packed,
            absmax,
            compute: Compute::F16,
        }
    }

    /// The code of weight `i` of the flattened matrix.
    #[inline]
    pub fn code_at(&self, i: usize) -> u8 {
        let byte = self.packed[i / 2];
        if i.is_multiple_of(2) {
            byte >> 4
        } else {
            byte & 15
        }
    }

    /// Calls `each(offset, value)` for the weights `range` of the flattened
    /// matrix, `offset` counted from the range's start.
    #[inline]
    fn decode(&self, compute: Compute, range: Range<usize>, mut each: impl FnMut(usize, f32)) {
        let table = self.code.table();
        let mut start = range.start;
        while start < range.end {
            let block = start / self.block;
            let end = range.end.min((block + 1) * self.block);
            let absmax = self.absmax.get(block);
            let scaled: [f32; 16] = std::array::from_fn(|c| compute.round(table[c] * absmax));
            for i in start..end {
                each(i - range.start, scaled[self.code_at(i) as usize]);
            }
            start = end;
        }
    }

    /// All weights, `[rows, columns]`, rounded to `compute`.
    pub fn dequantise(&self, compute: Compute) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.decode(compute, 0..values.len(), |i, value| values[i] = value);
        values
    }

    /// Packed bytes, and with absmax values, their codes and the offset.
    pub fn bytes(&self) -> Bytes {
        let parameters = self.packed.len() as u64;
        Bytes {
            parameters,
            with_state: parameters + self.absmax.bytes(),
        }
    }

    /// `x [tokens, in]` times the transposed weight: `[tokens, out]`.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        product(x, self.rows, self.columns, |row, panel: &mut Panel| {
            for (j, row) in (row..self.rows).take(TILE).enumerate() {
                let start = row * self.columns;
                self.decode(self.compute, start..start + self.columns, |k, value| {
                    panel[k][j] = value;
                });
            }
        })
    }
}

/// Packs one block and returns its absmax. The reference multiplies by the
/// reciprocal of absmax; a division would move codes next to a threshold.
fn quantise_block(code: Code4, values: &[f32], packed: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let reciprocal = 1.0 / absmax;
    let nearest = |v: f32| {
        if absmax == 0.0 {
            code.zero()
        } else {
            code.nearest(v * reciprocal)
        }
    };
    for (pair, byte) in values.chunks(2).zip(packed) {
        let second = pair.get(1).map_or(code.zero(), |&v| nearest(v));
        *byte = nearest(pair[0]) << 4 | second;
    }
    absmax
}
