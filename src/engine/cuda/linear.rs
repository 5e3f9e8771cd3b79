//! Weights on the card: one or several matrices packed as one, and how they
//! get there. The layouts are those of `kernels/common.cuh`; the functions
//! that undo them on the host are the reference beside the kernels.

use std::cell::RefCell;

use half::f16;

use super::card::{Arguments, Buffer, Card, Kernel, Plain};
use super::kernels::Kernels;
use super::staging::Staging;
use crate::engine::stored;
use crate::error::{Error, Result};
use crate::quant::bnb4::{Absmax, Bnb4, NESTED_BLOCK};
use crate::quant::codebook::{
    DYNAMIC_MAP, DYNAMIC_THRESHOLDS, FP4, FP4_THRESHOLDS, NF4, NF4_THRESHOLDS,
};
use crate::quant::{Bytes, Code4, Compute, Format, Int8, Weight};
use crate::source::checkpoint::Checkpoint;
use crate::source::origin::{Origin, random_scale, random_start};

/// Rows of one tensor-core tile.
pub const TILE_ROWS: usize = 16;
/// Columns must be a multiple of this.
pub const COLUMN_STEP: usize = 64;

/// One of the matrices packed together; mirrors the kernels' `Part`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Part {
    codes: u64,
    nested: u64,
    plain: u64,
    offset: u64,
    rows: i32,
    unused: i32,
}

/// Mirrors the kernels' `Parts`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    part: [Part; 3],
    count: i32,
    interleaved: i32,
    block_shift: i32,
    rows: i32,
}

// SAFETY: integers without gaps, as the kernels declare them.
unsafe impl Plain for Parts {}

/// How the numbers of a [`Linear`] are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    F16,
    Bit4 { code: Code4, compute: Compute },
    Int8 { threshold: f32 },
}

/// Matrices `[rows, columns]` packed as one weight.
pub struct Linear {
    pub kind: Kind,
    pub weight: Buffer,
    pub parts: Parts,
    /// Of all parts.
    pub rows: usize,
    pub columns: usize,
    /// INT8: the largest magnitude of each packed row, f32.
    pub row_absmax: Option<Buffer>,
    /// 4-bit: what `parts` points to.
    state: Vec<PartState>,
}

/// The absmax values of one part.
struct PartState {
    blocks: usize,
    plain: Option<Buffer>,
    codes: Option<Buffer>,
    nested: Option<Buffer>,
    offset: Option<Buffer>,
}

/// The tables of the 4-bit formats on the card.
pub struct Tables(Buffer);

impl Tables {
    pub fn new(card: &Card) -> Result<Self> {
        let tables: [&[f32]; 6] = [
            &NF4,
            &FP4,
            &NF4_THRESHOLDS,
            &FP4_THRESHOLDS,
            &*DYNAMIC_MAP,
            &*DYNAMIC_THRESHOLDS,
        ];
        Ok(Self(card.copied("tables", &tables.concat())?))
    }

    /// The 16 values of a code.
    pub fn values(&self, code: Code4) -> u64 {
        self.after(match code {
            Code4::Nf4 => 0,
            Code4::Fp4 => 16,
        })
    }

    fn thresholds(&self, code: Code4) -> u64 {
        self.after(match code {
            Code4::Nf4 => 32,
            Code4::Fp4 => 47,
        })
    }

    /// The 256 values of the dynamic map.
    pub fn map(&self) -> u64 {
        self.after(54)
    }

    fn map_thresholds(&self) -> u64 {
        self.after(54 + 256)
    }

    fn after(&self, numbers: usize) -> u64 {
        self.0.at(4 * numbers)
    }
}

/// One matrix to pack: its name and rows.
pub type Named<'a> = (&'a str, usize);

/// Brings weights to the card and packs them there.
pub struct Packer<'a> {
    card: &'a Card,
    kernels: &'a Kernels,
    tables: &'a Tables,
    weights: &'a Origin,
    /// Whether the checkpoint's linears are packed already.
    packed: bool,
    /// The way to `raw`, for a checkpoint.
    staging: Option<RefCell<Staging>>,
    /// As stored, before conversion.
    raw: Buffer,
    /// FP16, row-major.
    plain: Buffer,
    /// f32, one a block.
    absmax: Buffer,
    /// f64, one a nested block.
    sums: Buffer,
    /// How many numbers FP16 could not hold.
    bad: Buffer,
    /// The tensors they may be in, with their shapes.
    read: RefCell<Vec<(String, [usize; 2])>>,
}

impl<'a> Packer<'a> {
    /// Room for matrices of at most `elements` numbers; larger ones go in pieces
    /// of whole tiles where their format allows. `packed` if the checkpoint's
    /// linears are packed already.
    pub fn new(
        card: &'a Card,
        kernels: &'a Kernels,
        tables: &'a Tables,
        weights: &'a Origin,
        packed: bool,
        elements: usize,
    ) -> Result<Self> {
        let blocks = elements.div_ceil(COLUMN_STEP);
        let stored = match weights {
            Origin::Stored(_) => 4 * elements,
            Origin::Random { .. } => 0,
        };
        Ok(Self {
            card,
            kernels,
            tables,
            weights,
            packed,
            raw: card.zeros("staging of weights", stored)?,
            plain: card.zeros("staging of weights", 2 * elements)?,
            absmax: card.zeros("staging of absmax values", 4 * blocks)?,
            sums: card.zeros("staging of sums", 8 * blocks.div_ceil(NESTED_BLOCK))?,
            bad: card.zeros("a counter", 4)?,
            staging: match weights {
                Origin::Stored(_) => Some(RefCell::new(Staging::new(card)?)),
                Origin::Random { .. } => None,
            },
            read: RefCell::default(),
        })
    }

    /// Waits until all is packed.
    ///
    /// # Errors
    /// If the device fails, or a tensor holds a number that is not finite in FP16,
    /// which is looked at here for all of them, so that packing need not wait.
    pub fn finish(self) -> Result<()> {
        self.card.wait("packing weights")?;
        let Origin::Stored(checkpoint) = self.weights else {
            return Ok(());
        };
        let bad: Vec<u32> = self.card.download(&self.bad, 0, 1)?;
        if bad[0] > 0 {
            // The host finds the place and says what is there.
            for (name, shape) in self.read.borrow().iter() {
                checkpoint.tensor(name, shape)?.to_f16()?;
            }
        }
        Ok(())
    }

    /// Packs `matrices` of `columns` as one, in turns of 8 rows if `interleaved`.
    pub fn pack(
        &self,
        format: Format,
        compute: Compute,
        matrices: &[Named<'_>],
        columns: usize,
        interleaved: bool,
    ) -> Result<Linear> {
        let rows: usize = matrices.iter().map(|&(_, rows)| rows).sum();
        let padded = rows.next_multiple_of(TILE_ROWS);
        let (kind, bytes, block) = match format.check()? {
            Format::Fp16 => (Kind::F16, 2 * padded * columns, COLUMN_STEP),
            Format::Bnb4 { code, block, .. } => {
                (Kind::Bit4 { code, compute }, padded * columns / 2, block)
            }
            Format::Int8 { threshold } => (Kind::Int8 { threshold }, padded * columns, COLUMN_STEP),
        };
        let weight = self.card.zeros("weights", bytes)?;
        let row_absmax = match kind {
            Kind::Int8 { .. } => Some(self.card.zeros("row scales", 4 * padded)?),
            _ => None,
        };
        let state: Vec<PartState> = match format {
            Format::Bnb4 {
                block,
                double_quant,
                ..
            } => matrices
                .iter()
                .map(|&(_, rows)| self.part_state(rows, columns, block, double_quant))
                .collect::<Result<_>>()?,
            _ => Vec::new(),
        };
        let mut parts = Parts {
            part: [Part::default(); 3],
            count: matrices.len() as i32,
            interleaved: i32::from(interleaved),
            block_shift: block.trailing_zeros() as i32,
            rows: rows as i32,
        };
        let address = |buffer: &Option<Buffer>| buffer.as_ref().map_or(0, |b| b.at(0));
        for (i, &(_, rows)) in matrices.iter().enumerate() {
            parts.part[i].rows = rows as i32;
            if let Some(state) = state.get(i) {
                parts.part[i] = Part {
                    codes: address(&state.codes),
                    nested: address(&state.nested),
                    plain: address(&state.plain),
                    offset: address(&state.offset),
                    rows: rows as i32,
                    unused: 0,
                };
            }
        }
        let linear = Linear {
            kind,
            weight,
            parts,
            rows,
            columns,
            row_absmax,
            state,
        };
        if let (Origin::Stored(checkpoint), true) = (self.weights, self.packed)
            && format != Format::Fp16
        {
            self.take_packed(&linear, checkpoint, format, matrices)?;
            return Ok(linear);
        }
        for (i, &(name, rows)) in matrices.iter().enumerate() {
            self.pack_part(&linear, i, name, rows)?;
        }
        Ok(linear)
    }

    /// Linears that bitsandbytes packed before the checkpoint was saved: laid
    /// out on the host, copied as they are.
    fn take_packed(
        &self,
        linear: &Linear,
        checkpoint: &Checkpoint,
        format: Format,
        matrices: &[Named<'_>],
    ) -> Result<()> {
        let columns = linear.columns;
        let mut tiles = vec![0_u8; linear.weight.bytes()];
        let mut row_absmax = vec![0.0_f32; linear.rows.next_multiple_of(TILE_ROWS)];
        for (i, &(name, rows)) in matrices.iter().enumerate() {
            match stored::weight(checkpoint, format, name, rows, columns)? {
                Weight::Bnb4(weight) => {
                    for row in 0..rows {
                        for k in (0..columns).step_by(2) {
                            let byte = weight.packed[(row * columns + k) / 2];
                            tiles[at_4bit(linear.packed_row(i, row), k, columns)] =
                                byte.rotate_left(4);
                        }
                    }
                    self.copy_absmax(&linear.state[i], &weight.absmax)?;
                }
                Weight::Int8(weight) => {
                    for row in 0..rows {
                        let packed = linear.packed_row(i, row);
                        row_absmax[packed] = weight.row_absmax[row];
                        for k in 0..columns {
                            tiles[at_int8(packed, k, columns)] =
                                weight.codes[row * columns + k].cast_unsigned();
                        }
                    }
                }
                Weight::Fp16(_) => unreachable!("a packed weight has a packed format"),
            }
        }
        self.card.upload(&linear.weight, 0, &tiles)?;
        if let Some(buffer) = &linear.row_absmax {
            self.card.upload(buffer, 0, &row_absmax)?;
        }
        Ok(())
    }

    fn copy_absmax(&self, state: &PartState, absmax: &Absmax) -> Result<()> {
        match (
            absmax,
            &state.plain,
            &state.codes,
            &state.nested,
            &state.offset,
        ) {
            (Absmax::Plain(values), Some(plain), ..) => self.card.upload(plain, 0, values),
            (
                Absmax::Double {
                    codes,
                    nested_absmax,
                    offset,
                },
                None,
                Some(to_codes),
                Some(to_nested),
                Some(to_offset),
            ) => {
                self.card.upload(to_codes, 0, codes)?;
                self.card.upload(to_nested, 0, nested_absmax)?;
                self.card.upload(to_offset, 0, &[*offset])
            }
            _ => unreachable!("opening checked that double quantisation is as asked for"),
        }
    }

    /// Room for the absmax values of a part. The kernels read whole tiles, so
    /// rows that only fill the last tile have values too.
    fn part_state(
        &self,
        rows: usize,
        columns: usize,
        block: usize,
        double: bool,
    ) -> Result<PartState> {
        let held = (rows.next_multiple_of(TILE_ROWS) * columns).div_ceil(block);
        let some = |bytes: usize| self.card.zeros("absmax values", bytes).map(Some);
        let mut state = PartState {
            blocks: (rows * columns).div_ceil(block),
            plain: None,
            codes: None,
            nested: None,
            offset: None,
        };
        if double {
            state.codes = some(held)?;
            state.nested = some(4 * held.div_ceil(NESTED_BLOCK))?;
            state.offset = some(4)?;
        } else {
            state.plain = some(4 * held)?;
        }
        Ok(state)
    }

    fn pack_part(&self, linear: &Linear, part: usize, name: &str, rows: usize) -> Result<()> {
        let columns = linear.columns;
        if rows * columns * 2 > self.plain.bytes() {
            return self.pack_pieces(linear, name, rows);
        }
        self.plain_values(name, rows, columns, 0..rows)?;
        match linear.kind {
            Kind::F16 => self.pack_f16(linear.parts, part, rows, columns, linear.weight.at(0)),
            Kind::Int8 { .. } => {
                let absmax = linear.row_absmax.as_ref().map_or(0, |b| b.at(0));
                let arguments = Arguments::new()
                    .with(self.plain.at(0))
                    .with(linear.parts)
                    .with(part as i32)
                    .with(columns as i32)
                    .with(linear.weight.at(0))
                    .with(absmax);
                self.stride("quantise_int8", rows * 32, arguments)
            }
            Kind::Bit4 { code, .. } => self.quantise_4bit(linear, part, rows, code),
        }
    }

    fn pack_f16(
        &self,
        parts: Parts,
        part: usize,
        rows: usize,
        columns: usize,
        to: u64,
    ) -> Result<()> {
        let arguments = Arguments::new()
            .with(self.plain.at(0))
            .with(parts)
            .with(part as i32)
            .with(columns as i32)
            .with(to);
        self.stride("pack_f16", rows * columns, arguments)
    }

    /// A table in FP16 that is larger than the staging: whole tiles at a time.
    fn pack_pieces(&self, linear: &Linear, name: &str, rows: usize) -> Result<()> {
        let columns = linear.columns;
        assert!(
            linear.kind == Kind::F16 && linear.parts.count == 1,
            "a lone FP16 table"
        );
        let piece = self.plain.bytes() / (2 * columns) / TILE_ROWS * TILE_ROWS;
        for start in (0..rows).step_by(piece) {
            let end = rows.min(start + piece);
            self.plain_values(name, rows, columns, start..end)?;
            let mut parts = linear.parts;
            parts.part[0].rows = (end - start) as i32;
            let to = linear.weight.at(2 * start * columns);
            self.pack_f16(parts, 0, end - start, columns, to)?;
        }
        Ok(())
    }

    /// Rows `range` of the tensor `name` `[rows, columns]` in FP16, row-major,
    /// in the staging buffer.
    fn plain_values(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        let count = range.len() * columns;
        let checkpoint = match self.weights {
            Origin::Stored(checkpoint) => checkpoint,
            Origin::Random { seed } => {
                let start = random_start(*seed, name).expect("norms are not packed");
                // The stream's counter moves on by a constant.
                let skipped = (range.start * columns) as u64;
                let start = start.wrapping_add(skipped.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let arguments = Arguments::new()
                    .with(self.plain.at(0))
                    .with(count as i64)
                    .with(start)
                    .with(random_scale());
                return self.stride("random_f16", count, arguments);
            }
        };
        let tensor = checkpoint.tensor(name, &[rows, columns])?;
        let (kind, element, bytes) = tensor.raw();
        let bytes = &bytes[range.start * columns * element..range.end * columns * element];
        let staging = self.staging.as_ref().expect("a checkpoint is staged");
        staging.borrow_mut().upload(&self.raw, bytes)?;
        let arguments = Arguments::new()
            .with(self.raw.at(0))
            .with(kind)
            .with(self.plain.at(0))
            .with(count as i64)
            .with(self.bad.at(0));
        self.stride("to_f16", count, arguments)?;
        self.read
            .borrow_mut()
            .push((name.to_owned(), [rows, columns]));
        Ok(())
    }

    fn quantise_4bit(&self, linear: &Linear, part: usize, rows: usize, code: Code4) -> Result<()> {
        let state = &linear.state[part];
        let blocks = state.blocks;
        let absmax = state.plain.as_ref().unwrap_or(&self.absmax).at(0);
        let arguments = Arguments::new()
            .with(self.plain.at(0))
            .with(linear.parts)
            .with(part as i32)
            .with(linear.columns as i32)
            .with(self.tables.thresholds(code))
            .with(i32::from(code == Code4::Fp4))
            .with(linear.weight.at(0))
            .with(absmax);
        debug_assert!(rows * linear.columns <= self.plain.bytes() / 2);
        self.stride("quantise_4bit", blocks, arguments)?;
        let (Some(codes), Some(nested), Some(offset)) =
            (&state.codes, &state.nested, &state.offset)
        else {
            return Ok(());
        };
        let groups = blocks.div_ceil(NESTED_BLOCK);
        let sums = Arguments::new()
            .with(absmax)
            .with(blocks as i64)
            .with(self.sums.at(0));
        self.stride("nested_sums", groups, sums)?;
        let mean = Arguments::new()
            .with(self.sums.at(0))
            .with(groups as i64)
            .with(blocks as i64)
            .with(offset.at(0));
        self.card
            .launch(&self.kernels.get("nested_offset")?, (1, 1, 1), 1, 0, mean)?;
        let quantise = Arguments::new()
            .with(absmax)
            .with(blocks as i64)
            .with(offset.at(0))
            .with(self.tables.map_thresholds())
            .with(codes.at(0))
            .with(nested.at(0));
        self.stride("quantise_absmax", groups * 32, quantise)
    }

    /// Launches a kernel that strides over `threads` of work.
    fn stride(&self, name: &str, threads: usize, arguments: Arguments) -> Result<()> {
        stride(self.card, &self.kernels.get(name)?, threads, arguments)
    }
}

/// Launches a kernel that strides over its grid, for `work` threads in all.
pub fn stride(card: &Card, kernel: &Kernel, work: usize, arguments: Arguments) -> Result<()> {
    let most = card.multiprocessors * 32;
    let blocks = work.div_ceil(256).clamp(1, most) as u32;
    card.launch(kernel, (blocks, 1, 1), 256, 0, arguments)
}

impl Linear {
    /// Bytes held on the card, padding of the last tile included.
    pub fn held_bytes(&self) -> usize {
        let state = self.state.iter().flat_map(|state| {
            [&state.plain, &state.codes, &state.nested, &state.offset]
                .into_iter()
                .flatten()
        });
        let rest = state.chain(&self.row_absmax).map(Buffer::bytes);
        self.weight.bytes() + rest.sum::<usize>()
    }

    /// Bytes of the weight, counted as the formats count them.
    pub fn bytes(&self, format: Format) -> Bytes {
        (0..self.parts.count as usize)
            .map(|i| {
                let rows = self.parts.part[i].rows as usize;
                crate::quant::size::linear_bytes(format, rows, self.columns)
            })
            .sum()
    }

    /// 4-bit: weights that share one absmax value.
    pub fn block(&self) -> usize {
        1 << self.parts.block_shift
    }

    /// 4-bit: whether absmax values are not quantised again.
    pub fn plain_absmax(&self) -> bool {
        self.parts.part[0].plain != 0
    }

    /// Rows of each part.
    fn part_rows(&self) -> impl Iterator<Item = usize> {
        (0..self.parts.count as usize).map(|i| self.parts.part[i].rows as usize)
    }

    /// Packed row of row `row` of part `part`.
    fn packed_row(&self, part: usize, row: usize) -> usize {
        if self.parts.interleaved == 1 {
            return row / 8 * 16 + part * 8 + row % 8;
        }
        self.part_rows().take(part).sum::<usize>() + row
    }

    /// The parts as the host packs them, for comparison: 4-bit.
    ///
    /// # Errors
    /// If the weight is not 4-bit, or the device fails.
    pub fn to_bnb4(&self, card: &Card) -> Result<Vec<Bnb4>> {
        let Kind::Bit4 { code, .. } = self.kind else {
            return Err(Error::engine(
                "reading a 4-bit weight back",
                "it is not 4-bit",
            ));
        };
        let tiles: Vec<u8> = card.download(&self.weight, 0, self.weight.bytes())?;
        let columns = self.columns;
        let mut parts = Vec::new();
        for (i, rows) in self.part_rows().enumerate() {
            let mut packed = vec![0_u8; rows * columns / 2];
            for row in 0..rows {
                for k in (0..columns).step_by(2) {
                    let byte = tiles[at_4bit(self.packed_row(i, row), k, columns)];
                    packed[(row * columns + k) / 2] = byte.rotate_left(4);
                }
            }
            let state = &self.state[i];
            let absmax = match (&state.plain, &state.codes, &state.nested, &state.offset) {
                (Some(plain), ..) => Absmax::Plain(card.download(plain, 0, state.blocks)?),
                (None, Some(codes), Some(nested), Some(offset)) => Absmax::Double {
                    codes: card.download(codes, 0, state.blocks)?,
                    nested_absmax: card.download(nested, 0, state.blocks.div_ceil(NESTED_BLOCK))?,
                    offset: card.download(offset, 0, 1)?[0],
                },
                _ => unreachable!("a part has one kind of absmax values"),
            };
            parts.push(Bnb4 {
                code,
                block: 1 << self.parts.block_shift,
                rows,
                columns,
                packed,
                absmax,
                compute: Compute::F16,
            });
        }
        Ok(parts)
    }

    /// The parts as the host packs them, for comparison: INT8.
    ///
    /// # Errors
    /// If the weight is not INT8, or the device fails.
    pub fn to_int8(&self, card: &Card) -> Result<Vec<Int8>> {
        let (Kind::Int8 { threshold }, Some(absmax)) = (self.kind, &self.row_absmax) else {
            return Err(Error::engine(
                "reading an INT8 weight back",
                "it is not INT8",
            ));
        };
        let tiles: Vec<i8> = card.download(&self.weight, 0, self.weight.bytes())?;
        let absmax: Vec<f32> = card.download(absmax, 0, self.rows)?;
        let columns = self.columns;
        let part = |(i, rows): (usize, usize)| {
            let packed = |row| self.packed_row(i, row);
            let codes = (0..rows).flat_map(|row| {
                let tiles = &tiles;
                (0..columns).map(move |k| tiles[at_int8(packed(row), k, columns)])
            });
            Int8 {
                codes: codes.collect(),
                row_absmax: (0..rows).map(|row| absmax[packed(row)]).collect(),
                rows,
                columns,
                threshold,
            }
        };
        Ok(self.part_rows().enumerate().map(part).collect())
    }

    /// The parts row-major, for comparison: FP16.
    ///
    /// # Errors
    /// If the weight is not FP16, or the device fails.
    pub fn to_f16(&self, card: &Card) -> Result<Vec<Vec<f16>>> {
        if self.kind != Kind::F16 {
            return Err(Error::engine(
                "reading an FP16 weight back",
                "it is not FP16",
            ));
        }
        let tiles: Vec<f16> = card.download(&self.weight, 0, self.weight.bytes() / 2)?;
        let columns = self.columns;
        let part = |(i, rows): (usize, usize)| {
            let place = |at: usize| {
                let (row, k) = (at / columns, at % columns);
                tiles[at_f16(self.packed_row(i, row), k, columns)]
            };
            (0..rows * columns).map(place).collect()
        };
        Ok(self.part_rows().enumerate().map(part).collect())
    }
}

/// Lane and register of an mma fragment that hold packed row `row`, 16-bit
/// column `k` of 16.
fn fragment(row: usize, k: usize) -> (usize, usize) {
    (row % 8 * 4 + k % 8 / 2, row / 8 % 2 + 2 * (k / 8))
}

/// Where the FP16 layout holds packed row `row`, column `k`, in numbers.
fn at_f16(row: usize, k: usize, columns: usize) -> usize {
    let (lane, register) = fragment(row, k % 16);
    ((row / 16 * (columns / 16) + k / 16) * 32 + lane) * 8 + register * 2 + k % 2
}

/// Where the 4-bit layout holds columns `k` and `k + 1`, in bytes.
fn at_4bit(row: usize, k: usize, columns: usize) -> usize {
    let (lane, register) = fragment(row, k % 16);
    ((row / 16 * (columns / 64) + k / 64) * 32 + lane) * 16 + k / 16 % 4 * 4 + register
}

/// Where the INT8 layout holds packed row `row`, column `k`, in bytes.
fn at_int8(row: usize, k: usize, columns: usize) -> usize {
    let lane = row % 8 * 4 + k % 16 / 4;
    let register = row / 8 % 2 + 2 * (k % 32 / 16);
    ((row / 16 * (columns / 32) + k / 32) * 32 + lane) * 16 + register * 4 + k % 4
}
