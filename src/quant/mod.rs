//! A weight in its format: from plain values to packed bytes and back, and the
//! product with activations that never unpacks more than one tile at a time.
//!
//! May enter: [`crate::source::config`] (for shapes) and plain numbers. Nothing
//! here knows what a layer or a token is. A format is a variant of [`Format`],
//! one file, and one golden file.

pub mod bnb4;
pub mod codebook;
pub mod fp16;
pub mod int8;
pub mod product;
pub mod size;

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

pub use bnb4::Bnb4;
pub use fp16::Fp16;
pub use int8::Int8;
pub use size::Bytes;

use crate::error::{Error, Result};

/// Which 16-entry table a 4-bit format uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Code4 {
    /// NormalFloat: quantiles of a normal distribution (Dettmers et al. 2023).
    Nf4,
    /// bitsandbytes' 4-bit float, an E2M1-like set that is not evenly spaced.
    Fp4,
}

/// How the linear weights of the decoder layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Format {
    /// IEEE half precision, as loaded.
    Fp16,
    /// bitsandbytes 4-bit: one absmax for `block` consecutive weights of the
    /// flattened `[out, in]` matrix; with `double_quant` the absmax values are
    /// themselves stored in 8 bits.
    Bnb4 {
        code: Code4,
        block: usize,
        double_quant: bool,
    },
    /// LLM.int8() (Dettmers et al. 2022): int8 rows, and activations of
    /// magnitude `threshold` or more multiplied in FP16. 0 turns outliers off.
    Int8 { threshold: f32 },
}

impl Format {
    /// NF4 or FP4 as the original study configures them: block 64.
    pub const fn bnb4(code: Code4, double_quant: bool) -> Self {
        Self::Bnb4 {
            code,
            block: 64,
            double_quant,
        }
    }

    /// The name of the format with what its weights are multiplied in, if that
    /// is not FP16.
    pub fn label(self, compute: Compute) -> String {
        match compute {
            Compute::F16 => self.to_string(),
            Compute::Bf16 => format!("{self}, BF16"),
            Compute::F32 => format!("{self}, F32"),
        }
    }

    /// Refuses block sizes and thresholds that the formats do not have.
    pub fn check(self) -> Result<Self> {
        match self {
            Self::Bnb4 { block, .. }
                if !(64..=4096).contains(&block) || !block.is_power_of_two() =>
            {
                Err(Error::usage(
                    "block size",
                    "a power of two from 64 to 4096",
                    block.to_string(),
                    "use 64, the default of bitsandbytes",
                ))
            }
            Self::Int8 { threshold } if !(threshold >= 0.0 && threshold.is_finite()) => {
                Err(Error::usage(
                    "LLM.int8 threshold",
                    "a finite number of at least 0",
                    threshold.to_string(),
                    "use 6.0, the default of bitsandbytes",
                ))
            }
            other => Ok(other),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Fp16 => f.write_str("FP16"),
            Self::Bnb4 {
                code,
                block,
                double_quant,
            } => {
                f.write_str(match code {
                    Code4::Nf4 => "NF4",
                    Code4::Fp4 => "FP4",
                })?;
                if block != 64 {
                    write!(f, " block {block}")?;
                }
                f.write_str(if double_quant {
                    ""
                } else {
                    ", no double quant"
                })
            }
            Self::Int8 { .. } => f.write_str("INT8"),
        }
    }
}

/// The type that dequantised weights are rounded to before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    F16,
    Bf16,
    F32,
}

impl Compute {
    /// `value` rounded to this type (to nearest, ties to even), as f32.
    #[inline(always)]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F32 => value,
        }
    }
}

/// One linear's weight `[out, in]`, row-major, packed in its format. Each
/// variant owns exactly the tensors its format has.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    Fp16(Fp16),
    Bnb4(Bnb4),
    Int8(Int8),
}

impl Weight {
    /// Packs `values` (`[rows, columns]`, row-major, finite).
    ///
    /// # Errors
    /// [`Error::Usage`] if the format's own parameters are out of range.
    ///
    /// # Panics
    /// If `values` does not hold `rows * columns` numbers.
    pub fn pack(format: Format, values: Vec<f16>, rows: usize, columns: usize) -> Result<Self> {
        assert_eq!(
            values.len(),
            rows * columns,
            "a weight of [{rows}, {columns}]"
        );
        Ok(match format.check()? {
            Format::Fp16 => Self::Fp16(Fp16::new(values, rows, columns)),
            Format::Bnb4 {
                code,
                block,
                double_quant,
            } => {
                let values = values.to_f32_vec();
                Self::Bnb4(Bnb4::quantise(
                    code,
                    block,
                    double_quant,
                    &values,
                    rows,
                    columns,
                ))
            }
            Format::Int8 { threshold } => Self::Int8(Int8::quantise(
                threshold,
                &values.to_f32_vec(),
                rows,
                columns,
            )),
        })
    }

    /// The same weight, rounded to `compute` before it is multiplied if it is
    /// 4-bit; the other formats have FP16 in their definition.
    #[must_use]
    pub fn computed_in(self, compute: Compute) -> Self {
        match self {
            Self::Bnb4(w) => Self::Bnb4(Bnb4 { compute, ..w }),
            other => other,
        }
    }

    /// Bytes held, counted both ways.
    pub fn bytes(&self) -> Bytes {
        match self {
            Self::Fp16(w) => w.bytes(),
            Self::Bnb4(w) => w.bytes(),
            Self::Int8(w) => w.bytes(),
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Fp16(w) => (w.rows, w.columns),
            Self::Bnb4(w) => (w.rows, w.columns),
            Self::Int8(w) => (w.rows, w.columns),
        }
    }

    /// `x [tokens, in]` times the transposed weight: `[tokens, out]`, f32
    /// accumulation in one fixed order for each element (see [`product`]).
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Fp16(w) => w.product(x),
            Self::Bnb4(w) => w.product(x),
            Self::Int8(w) => w.product(x),
        }
    }
}
