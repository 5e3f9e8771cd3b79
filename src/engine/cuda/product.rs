//! Products of packed weights with activations, and what becomes of the sums.

use super::card::{Arguments, Buffer, Card, Plain};
use super::kernels::{
    FEW_4BIT, FEW_4BIT_BF16, FEW_F16, FEW_INT8, Kernels, MANY_BF16, MANY_F16, MANY_INT8, Program,
};
use super::linear::{Kind, Linear, TILE_ROWS, Tables, stride};
use crate::error::Result;
use crate::quant::{Compute, Format};

/// Columns that are summed from zero; as in `kernels/common.cuh`.
const SEGMENT: usize = 256;
/// Most tokens that `few_*` serves.
pub const FEW: usize = 64;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Written, `[tokens][rows]` f32.
    Store,
    /// Added to the residual stream, `[tokens][rows]` f32.
    Add,
    /// `silu(gate) * up`, as 16-bit activations of the next product.
    SwiGlu,
    /// The rank of each token's largest value; written too, if `to` is given.
    Likeliest,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Add => "add",
            Self::SwiGlu => "swiglu",
            Self::Likeliest => "likeliest",
        }
    }
}

/// Where results go, by address; mirrors the kernels' `Output`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    pub to: u64,
    pub act: u64,
    pub best: u64,
    /// Of the weight; filled in by [`Products::run`].
    pub rows: i32,
    pub act_bf16: i32,
}

/// Mirrors the kernels' `Scales8`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Scales8 {
    row_absmax: u64,
    token_absmax: u64,
    outlier_count: u64,
    outliers: u64,
}

// SAFETY: integers without gaps, as the kernels declare them.
unsafe impl Plain for Output {}
// SAFETY: as above.
unsafe impl Plain for Scales8 {}

/// Runs products in one format, with the scratch they need.
pub struct Products {
    card: Card,
    kernels: Kernels,
    tables: Tables,
    int8: Option<Int8Scratch>,
    /// One 4-bit matrix in 16 bits, for products of many tokens.
    unpacked: Option<Buffer>,
}

/// Activations in int8.
struct Int8Scratch {
    x: Buffer,
    absmax: Buffer,
    count: Buffer,
    outliers: Buffer,
}

/// Programs that the products of a format need; the head is FP16 in all.
pub fn programs(format: Format, compute: Compute) -> Vec<Program> {
    let mut programs = vec![FEW_F16, MANY_F16];
    match (format, compute) {
        (Format::Fp16, _) => {}
        (Format::Bnb4 { .. }, Compute::Bf16) => programs.extend([FEW_4BIT_BF16, MANY_BF16]),
        (Format::Bnb4 { .. }, _) => programs.push(FEW_4BIT),
        (Format::Int8 { .. }, _) => programs.extend([FEW_INT8, MANY_INT8]),
    }
    programs
}

impl Products {
    /// Scratch for `tokens` of at most `columns`, and for 4-bit matrices of at
    /// most `elements`. `kernels` holds [`programs`].
    pub fn new(
        card: &Card,
        kernels: &Kernels,
        format: Format,
        compute: Compute,
        tokens: usize,
        columns: usize,
        elements: usize,
    ) -> Result<Self> {
        let zeros = |bytes: usize| card.zeros("scratch of the products", bytes);
        let tokens = tokens.next_multiple_of(8);
        let (mut few, mut many) = (vec!["f16"], vec!["f16"]);
        let (mut int8, mut unpacked) = (None, None);
        match format {
            Format::Fp16 => {}
            Format::Bnb4 { .. } => {
                unpacked = Some(zeros(2 * elements)?);
                few.push(if compute == Compute::Bf16 {
                    "bit4_bf16"
                } else {
                    "bit4"
                });
                many.extend((compute == Compute::Bf16).then_some("bf16"));
            }
            Format::Int8 { .. } => {
                int8 = Some(Int8Scratch {
                    x: zeros(tokens * columns)?,
                    absmax: zeros(4 * tokens)?,
                    count: zeros(4 * tokens)?,
                    outliers: zeros(4 * tokens * columns)?,
                });
                few.push("int8");
                many.push("int8");
            }
        }
        // Loaded now, since a function cannot be loaded while a graph is captured.
        for what in [What::Store, What::Add, What::SwiGlu, What::Likeliest] {
            let name = what.name();
            let has = |kind: &&&str| what != What::Likeliest || **kind == "f16";
            for kind in few.iter().filter(has) {
                for size in [8, 16, 32, 64] {
                    kernels.get(&format!("few_{kind}_{name}_{size}"))?;
                }
            }
            for kind in many.iter().filter(has) {
                for size in [64, 128] {
                    kernels.get(&format!("many_{kind}_{name}_{size}"))?;
                }
            }
        }
        Ok(Self {
            card: card.clone(),
            kernels: kernels.clone(),
            tables: Tables::new(card)?,
            int8,
            unpacked,
        })
    }

    /// `tokens` rows of 16-bit activations at `x` times `linear`.
    pub fn run(
        &self,
        linear: &Linear,
        x: u64,
        tokens: usize,
        what: What,
        out: Output,
    ) -> Result<()> {
        let out = Output {
            rows: linear.rows as i32,
            ..out
        };
        let mut x = x;
        let mut scales = Scales8::default();
        if let (Kind::Int8 { threshold }, Some(int8)) = (linear.kind, &self.int8) {
            scales = Scales8 {
                row_absmax: linear.row_absmax.as_ref().map_or(0, |b| b.at(0)),
                token_absmax: int8.absmax.at(0),
                outlier_count: int8.count.at(0),
                outliers: int8.outliers.at(0),
            };
            let arguments = Arguments::new()
                .with(x)
                .with(linear.columns as i32)
                .with(threshold)
                .with(int8.x.at(0))
                .with(scales.token_absmax)
                .with(scales.outlier_count)
                .with(scales.outliers);
            self.kernels
                .launch("quantise_tokens", (tokens, 1, 1), 256, 0, arguments)?;
            x = int8.x.at(0);
        }
        if tokens <= FEW {
            self.few(linear, x, tokens, what, scales, out)
        } else {
            self.many(linear, x, tokens, what, scales, out)
        }
    }

    fn few(
        &self,
        linear: &Linear,
        x: u64,
        tokens: usize,
        what: What,
        scales: Scales8,
        out: Output,
    ) -> Result<()> {
        let size = tokens.next_power_of_two().max(8);
        let name = format!("few_{}_{}_{size}", few_name(linear.kind), what.name());
        let segments = linear.columns.div_ceil(SEGMENT);
        let warps = if segments > 16 && size <= 16 { 16 } else { 8 };
        let buffers = if segments > warps { 2 } else { 1 };
        // 20 floats a token and warp; a table of 16 by 32 floats.
        let shared = 4 * (buffers * warps * size * 20 + 512);
        let (table, map) = match linear.kind {
            Kind::Bit4 { code, .. } => (self.tables.values(code), self.tables.map()),
            _ => (0, 0),
        };
        let arguments = Arguments::new()
            .with(linear.weight.at(0))
            .with(linear.parts)
            .with(x)
            .with(linear.columns as i32)
            .with(tokens as i32)
            .with(table)
            .with(map)
            .with(scales)
            .with(out);
        let tiles = linear.rows.div_ceil(TILE_ROWS);
        self.kernels
            .launch(&name, (tiles, 1, 1), 32 * warps, shared, arguments)
    }

    fn many(
        &self,
        linear: &Linear,
        x: u64,
        tokens: usize,
        what: What,
        scales: Scales8,
        out: Output,
    ) -> Result<()> {
        let mut weight = linear.weight.at(0);
        let mut name = "f16";
        match linear.kind {
            Kind::F16 => {}
            Kind::Int8 { .. } => name = "int8",
            Kind::Bit4 { code, compute } => {
                let to = self.unpacked.as_ref().map_or(0, |b| b.at(0));
                let bf16 = compute == Compute::Bf16;
                let unpack = if bf16 {
                    "unpack_4bit_bf16"
                } else {
                    "unpack_4bit_f16"
                };
                let arguments = Arguments::new()
                    .with(weight)
                    .with(linear.parts)
                    .with(linear.columns as i32)
                    .with(self.tables.values(code))
                    .with(self.tables.map())
                    .with(to);
                let threads = linear.rows.div_ceil(TILE_ROWS) * linear.columns / 2;
                stride(&self.card, &self.kernels.get(unpack)?, threads, arguments)?;
                weight = to;
                name = if bf16 { "bf16" } else { "f16" };
            }
        }
        let groups = linear.rows.div_ceil(128);
        // Smaller blocks where large ones would leave multiprocessors idle.
        let idle = groups * tokens.div_ceil(128) < self.card.multiprocessors;
        let size = if idle { 64 } else { 128 };
        let name = format!("many_{name}_{}_{size}", what.name());
        let arguments = Arguments::new()
            .with(weight)
            .with(x)
            .with(linear.columns as i32)
            .with(tokens as i32)
            .with(scales)
            .with(out);
        let shared = 3 * 16 * (1024 + size * 8);
        let grid = (groups, tokens.div_ceil(size), 1);
        self.kernels.launch(&name, grid, 256, shared, arguments)
    }
}

fn few_name(kind: Kind) -> &'static str {
    match kind {
        Kind::F16 => "f16",
        Kind::Bit4 {
            compute: Compute::Bf16,
            ..
        } => "bit4_bf16",
        Kind::Bit4 { .. } => "bit4",
        Kind::Int8 { .. } => "int8",
    }
}

/// Where the layout of 16-bit activations holds column `k` of `token`.
pub fn activation_at(token: usize, k: usize, columns: usize) -> usize {
    (token / 8 * (columns / 8) + k / 8) * 64 + token % 8 * 8 + k % 8
}
