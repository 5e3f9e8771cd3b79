//! Linears that bitsandbytes packed before the checkpoint was saved, in the
//! layout of transformers, taken as they are.
//!
//! Beside `X.weight` lie, for 4 bits, `X.weight.absmax`, `.quant_map` and
//! `.quant_state.bitsandbytes__nf4` (JSON as bytes), under double quantisation
//! `.nested_absmax` and `.nested_quant_map` too; for LLM.int8(), `X.SCB` (the
//! largest magnitude of each row) and `X.weight_format`.

use std::path::Path;

use safetensors::tensor::Dtype;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::quant::bnb4::{Absmax, NESTED_BLOCK};
use crate::quant::codebook::DYNAMIC_MAP;
use crate::quant::{Bnb4, Code4, Compute, Format, Int8, Weight};
use crate::source::checkpoint::{Checkpoint, Stored};
use crate::source::config::Quantised;

const UNQUANTISED: &str = "use the unquantised checkpoint; this program quantises while it loads";

/// Refuses an experiment in another format than the one that is stored.
pub(super) fn check_format(dir: &Path, stored: Quantised, wanted: Format) -> Result<()> {
    let fits = match (stored, wanted) {
        (
            Quantised::Bits4 { nf4, double_quant },
            Format::Bnb4 {
                code,
                double_quant: double,
                ..
            },
        ) => nf4 == (code == Code4::Nf4) && double_quant == double,
        (Quantised::Int8 { threshold: stored }, Format::Int8 { threshold }) => stored == threshold,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(Error::checkpoint(
        dir.display().to_string(),
        format!("weights in {wanted}, or in F16, BF16 or F32 to make it from"),
        packed(stored),
        "run the experiment of that format; for the others use the unquantised checkpoint",
    ))
}

/// Refuses a checkpoint of which no FP16 baseline can be made.
pub(super) fn without_baseline(dir: &Path, stored: Quantised) -> Error {
    Error::checkpoint(
        dir.display().to_string(),
        "weights in F16, BF16 or F32 to make the FP16 baseline from, which every format is \
         compared with",
        packed(stored),
        "compare the unquantised checkpoint, of which every format is made; the speed of this one \
         is measured by `llama-quant bench` with the experiment of its format",
    )
}

/// What a packed checkpoint holds, in the words of a refusal.
fn packed(stored: Quantised) -> String {
    let format = match stored {
        Quantised::Bits4 { nf4, double_quant } => {
            Format::bnb4(if nf4 { Code4::Nf4 } else { Code4::Fp4 }, double_quant).to_string()
        }
        Quantised::Int8 { threshold } => format!("INT8 with threshold {threshold}"),
    };
    format!("weights that are packed in {format} already")
}

/// The packed linear `name` of `[rows, columns]`.
pub(super) fn weight(
    checkpoint: &Checkpoint,
    format: Format,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Weight> {
    let tensors = Tensors {
        checkpoint,
        name,
        rows,
        columns,
    };
    match format {
        Format::Bnb4 {
            code,
            block,
            double_quant,
        } => tensors.bits4(code, block, double_quant).map(Weight::Bnb4),
        Format::Int8 { threshold } => tensors.int8(threshold).map(Weight::Int8),
        Format::Fp16 => Err(Error::checkpoint(
            name,
            "a packed weight in a packed format",
            "FP16 asked for",
            UNQUANTISED,
        )),
    }
}

/// The tensors that make up one linear.
struct Tensors<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    rows: usize,
    columns: usize,
}

/// The JSON in `quant_state`.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl<'a> Tensors<'a> {
    fn refuse(&self, suffix: &str, wanted: impl Into<String>, found: impl Into<String>) -> Error {
        let name = format!("{}{suffix}", self.name);
        Error::checkpoint(
            name,
            wanted,
            found,
            "check that the checkpoint was saved by transformers with bitsandbytes, or use the \
             unquantised one",
        )
    }

    /// The tensor with `suffix` after the weight's name, of `count` elements.
    fn part(&self, suffix: &str, dtype: Dtype, count: Option<usize>) -> Result<Stored<'a>> {
        let name = format!("{}{suffix}", self.name);
        let stored = self.checkpoint.stored(&name);
        let stored =
            stored.ok_or_else(|| self.checkpoint.missing(&name, &[self.rows, self.columns]))?;
        let elements: usize = stored.shape.iter().product();
        if stored.dtype != dtype || count.is_some_and(|count| count != elements) {
            let count = count.map_or_else(String::new, |count| format!(" of {count} elements"));
            return Err(self.refuse(
                suffix,
                format!("{dtype:?}{count}"),
                format!(
                    "{:?} of {elements} in {}",
                    stored.dtype,
                    stored.file.display()
                ),
            ));
        }
        Ok(stored)
    }

    /// Finite numbers.
    fn numbers(&self, suffix: &str, count: usize) -> Result<Vec<f32>> {
        let (chunks, _) = self
            .part(suffix, Dtype::F32, Some(count))?
            .bytes
            .as_chunks();
        let numbers: Vec<f32> = chunks.iter().map(|&b| f32::from_le_bytes(b)).collect();
        match numbers.iter().find(|n| !n.is_finite()) {
            None => Ok(numbers),
            Some(other) => Err(self.refuse(suffix, "finite numbers", other.to_string())),
        }
    }

    /// Refuses a table that is not the one the products use. `torch` computes
    /// some entries to an ulp differently from one processor to the next.
    fn check_table(&self, suffix: &str, table: &[f32]) -> Result<()> {
        let stored = self.numbers(suffix, table.len())?;
        let differ = |(a, b): (&f32, &f32)| (a - b).abs() > 4.0 * f32::EPSILON * b.abs();
        match stored.iter().zip(table).position(differ) {
            None => Ok(()),
            Some(at) => Err(self.refuse(
                suffix,
                format!("{} at place {at}, as in bitsandbytes' table", table[at]),
                stored[at].to_string(),
            )),
        }
    }

    fn bits4(&self, code: Code4, block: usize, double_quant: bool) -> Result<Bnb4> {
        let kind = match code {
            Code4::Nf4 => "nf4",
            Code4::Fp4 => "fp4",
        };
        let suffix = format!(".quant_state.bitsandbytes__{kind}");
        let state = self.part(&suffix, Dtype::U8, None)?;
        let state: State = serde_json::from_slice(state.bytes)
            .map_err(|e| self.refuse(&suffix, "JSON of a quantisation state", e.to_string()))?;
        let (rows, columns) = (self.rows, self.columns);
        if state.quant_type != kind || state.blocksize != block || state.shape != [rows, columns] {
            return Err(self.refuse(
                &suffix,
                format!("{kind}, blocks of {block}, shape [{rows}, {columns}]"),
                format!(
                    "{}, blocks of {}, shape {:?}",
                    state.quant_type, state.blocksize, state.shape
                ),
            ));
        }
        let weights = rows * columns;
        let blocks = weights.div_ceil(block);
        let packed = self.part("", Dtype::U8, Some(weights.div_ceil(2)))?;
        self.check_table(".quant_map", code.table())?;
        let absmax = if double_quant {
            let (Some(NESTED_BLOCK), Some(offset)) = (state.nested_blocksize, state.nested_offset)
            else {
                return Err(self.refuse(
                    &suffix,
                    format!("nested blocks of {NESTED_BLOCK} and their offset"),
                    format!("{:?} and {:?}", state.nested_blocksize, state.nested_offset),
                ));
            };
            self.check_table(".nested_quant_map", &*DYNAMIC_MAP)?;
            Absmax::Double {
                codes: self
                    .part(".absmax", Dtype::U8, Some(blocks))?
                    .bytes
                    .to_vec(),
                nested_absmax: self.numbers(".nested_absmax", blocks.div_ceil(NESTED_BLOCK))?,
                offset: offset as f32,
            }
        } else {
            Absmax::Plain(self.numbers(".absmax", blocks)?)
        };
        Ok(Bnb4 {
            code,
            block,
            rows,
            columns,
            packed: packed.bytes.to_vec(),
            absmax,
            compute: Compute::F16,
        })
    }

    fn int8(&self, threshold: f32) -> Result<Int8> {
        let (rows, columns) = (self.rows, self.columns);
        let codes = self.part("", Dtype::I8, Some(rows * columns))?;
        if codes.shape != [rows, columns] {
            let wanted = format!("shape [{rows}, {columns}]");
            return Err(self.refuse("", wanted, format!("{:?}", codes.shape)));
        }
        let linear = self.name.trim_end_matches(".weight");
        let scales = Tensors {
            name: linear,
            ..*self
        };
        let format = scales.part(".weight_format", Dtype::U8, Some(1))?;
        if format.bytes != [0] {
            let found = format!("layout {}", format.bytes[0]);
            return Err(scales.refuse(".weight_format", "layout 0, row by row", found));
        }
        Ok(Int8 {
            codes: codes.bytes.iter().map(|&byte| byte.cast_signed()).collect(),
            row_absmax: scales.numbers(".SCB", rows)?,
            rows,
            columns,
            threshold,
        })
    }
}
