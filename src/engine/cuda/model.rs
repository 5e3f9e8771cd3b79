//! A whole model on the card.

use half::f16;

use super::card::{Buffer, Card};
use super::kernels::Kernels;
use super::linear::{COLUMN_STEP, Linear, Packer, TILE_ROWS, Tables};
use crate::engine::llama::table_names;
use crate::engine::math::Rope;
use crate::engine::stored;
use crate::error::{Error, Result};
use crate::quant::{Bytes, Compute, Format};
use crate::source::config::Config;
use crate::source::origin::Origin;

/// Packed weights and what the kernels need beside them.
pub struct Model {
    pub config: Config,
    pub format: Format,
    pub compute: Compute,
    /// `[vocab, hidden]`.
    pub embedding: Linear,
    /// None if it is the embedding.
    pub head: Option<Linear>,
    pub layers: Vec<Layer>,
    /// `[hidden]` f32, as all norms.
    pub norm: Buffer,
    /// `[positions, head_dim / 2]` f32.
    pub cosines: Buffer,
    pub sines: Buffer,
}

/// One decoder layer.
pub struct Layer {
    pub input_norm: Buffer,
    /// Queries, keys and values, one after the other.
    pub qkv: Linear,
    pub o: Linear,
    pub post_attention_norm: Buffer,
    /// Gate and up in turns of 8 rows.
    pub gate_up: Linear,
    pub down: Linear,
}

/// Most query heads that share keys and values: the rows of one tile.
const MOST_GROUP: usize = 16;
/// Columns are kept in 16 bits beside an outlier.
const MOST_COLUMNS: usize = 1 << 16;
/// Larger tables are brought to the card in pieces of so many numbers.
const PIECE: usize = 1 << 25;

/// Refuses shapes that the kernels do not serve.
pub fn check(config: &Config) -> Result<()> {
    let refuse = |field: &str, wanted: &str, found: usize| {
        Err(Error::config(
            field,
            format!("{wanted} on a GPU"),
            found.to_string(),
            "pass --device cpu",
        ))
    };
    if !matches!(config.head_dim, 64 | 128) {
        return refuse("head_dim", "64 or 128", config.head_dim);
    }
    if config.heads / config.kv_heads > MOST_GROUP {
        let group = config.heads / config.kv_heads;
        return refuse("query heads for each key-value head", "at most 16", group);
    }
    for (field, columns) in [
        ("hidden_size", config.hidden),
        ("intermediate_size", config.intermediate),
    ] {
        if columns % COLUMN_STEP != 0 || columns > MOST_COLUMNS {
            return refuse(field, "a multiple of 64 up to 65536", columns);
        }
    }
    Ok(())
}

impl Layer {
    pub(super) fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }
}

impl Model {
    /// Packs the model of this shape, for which [`check`] holds, from `weights`,
    /// one matrix at a time; rotary tables for `positions`.
    pub fn load(
        card: &Card,
        kernels: &Kernels,
        config: Config,
        weights: &Origin,
        format: Format,
        compute: Compute,
        positions: usize,
    ) -> Result<Self> {
        let tables = Tables::new(card)?;
        let linears = config.layer_linears();
        let largest = linears.iter().map(|&(_, rows, columns)| rows * columns);
        let table = config.vocab * config.hidden;
        let room = largest.max().unwrap_or_default().max(table.min(PIECE));
        let packed = config.quantised.is_some();
        if let (Origin::Stored(checkpoint), Some(quantised)) = (weights, config.quantised) {
            stored::check_format(checkpoint.folder(), quantised, format)?;
        }
        let packer = Packer::new(card, kernels, &tables, weights, packed, room)?;
        let (embedding, head) = table_names(&config, weights);
        let plain = |name: &str| {
            let matrix = [(name, config.vocab)];
            packer.pack(Format::Fp16, Compute::F16, &matrix, config.hidden, false)
        };
        let norm = |name: &str| {
            let values: Vec<f16> = weights.f16(name, &[config.hidden])?;
            let values: Vec<f32> = values.into_iter().map(f16::to_f32).collect();
            card.copied("norms", &values)
        };
        let layer = |i: usize| {
            let named = |j: usize| {
                let (name, rows, _) = linears[j];
                (format!("model.layers.{i}.{name}.weight"), rows)
            };
            let pack = |places: &[usize], interleaved: bool| {
                let names: Vec<(String, usize)> = places.iter().map(|&j| named(j)).collect();
                let matrices: Vec<(&str, usize)> = names
                    .iter()
                    .map(|(name, rows)| (name.as_str(), *rows))
                    .collect();
                packer.pack(
                    format,
                    compute,
                    &matrices,
                    linears[places[0]].2,
                    interleaved,
                )
            };
            Ok::<_, Error>(Layer {
                input_norm: norm(&format!("model.layers.{i}.input_layernorm.weight"))?,
                qkv: pack(&[0, 1, 2], false)?,
                o: pack(&[3], false)?,
                post_attention_norm: norm(&format!(
                    "model.layers.{i}.post_attention_layernorm.weight"
                ))?,
                gate_up: pack(&[4, 5], true)?,
                down: pack(&[6], false)?,
            })
        };
        let embedding = plain(embedding)?;
        let head = head.map(plain).transpose()?;
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        let norm = norm("model.norm.weight")?;
        let rope = Rope::new(&config, positions);
        let (cosines, sines) = rope.tables();
        let cosines = card.copied("rotary tables", cosines)?;
        let sines = card.copied("rotary tables", sines)?;
        packer.finish()?;
        Ok(Self {
            config,
            format,
            compute,
            embedding,
            head,
            layers,
            norm,
            cosines,
            sines,
        })
    }

    /// The weight that turns hidden states into logits.
    pub fn head(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Numbers of the largest packed linear of a layer, padding included.
    pub fn largest_linear(&self) -> usize {
        let linears = self.layers.iter().flat_map(Layer::linears);
        let sizes = linears.map(|l| l.rows.next_multiple_of(TILE_ROWS) * l.columns);
        sizes.max().unwrap_or_default()
    }

    /// Bytes of all weights as the formats count them, norms in FP16.
    pub fn bytes(&self) -> Bytes {
        let norm = Bytes::plain(2 * self.config.hidden as u64);
        let layers = self.layers.iter().map(|layer| {
            let linears = layer.linears();
            linears
                .map(|l| l.bytes(self.format))
                .into_iter()
                .sum::<Bytes>()
                + norm
                + norm
        });
        let tables = std::iter::once(&self.embedding).chain(&self.head);
        layers.sum::<Bytes>() + tables.map(|t| t.bytes(Format::Fp16)).sum() + norm
    }

    /// Bytes held on the card for the weights.
    pub fn held_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(Layer::linears);
        let tables = std::iter::once(&self.embedding).chain(&self.head);
        let norms = (2 * self.layers.len() + 1) * self.norm.bytes();
        linears.chain(tables).map(Linear::held_bytes).sum::<usize>() + norms
    }
}
