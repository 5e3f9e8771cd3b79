//! The weights of a Llama, loaded tensor by tensor into their formats.

use std::path::Path;

use half::slice::HalfFloatSliceExt;

use super::stored;
use crate::error::{Error, Result};
use crate::quant::{Bytes, Compute, Format, Fp16, Weight};
use crate::source::config::Config;
use crate::source::origin::{Origin, Weights};

/// A whole model on the host. Only the linears of the layers are quantised.
pub struct Llama {
    pub config: Config,
    /// `[vocab, hidden]`; also the head if the config ties them.
    pub embedding: Fp16,
    pub layers: Vec<Layer>,
    /// `[hidden]`.
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`, none if tied.
    pub head: Option<Fp16>,
}

/// One decoder layer. Linears are `[out, in]`.
pub struct Layer {
    /// `[hidden]`.
    pub input_norm: Vec<f32>,
    pub q: Weight,
    pub k: Weight,
    pub v: Weight,
    pub o: Weight,
    /// `[hidden]`.
    pub post_attention_norm: Vec<f32>,
    pub gate: Weight,
    pub up: Weight,
    pub down: Weight,
}

impl Llama {
    /// Loads the checkpoint folder `dir` and packs each linear as it arrives,
    /// so that no more than one tensor is ever held unpacked. Linears that are
    /// packed already are taken as they are.
    pub fn load(dir: &Path, format: Format) -> Result<Self> {
        Self::load_from(dir, Weights::Checkpoint, format)
    }

    /// As [`Llama::load`]; random weights need no more than the folder's
    /// `config.json`.
    pub fn load_from(dir: &Path, weights: Weights, format: Format) -> Result<Self> {
        let config = Config::open(dir)?;
        Self::build(config, &Origin::open(dir, weights)?, format, Compute::F16)
    }

    /// Packs the model of this shape from `weights`, tensor by tensor; 4-bit
    /// weights are rounded to `compute` before they are multiplied.
    pub fn build(
        config: Config,
        weights: &Origin,
        format: Format,
        compute: Compute,
    ) -> Result<Self> {
        if let (Origin::Stored(checkpoint), Some(quantised)) = (weights, config.quantised) {
            stored::check_format(checkpoint.folder(), quantised, format)?;
        }
        let loader = Loader {
            config: &config,
            weights,
            format,
            compute,
        };
        let (embedding, head) = loader.tables()?;
        let layers = (0..config.layers)
            .map(|i| loader.layer(i))
            .collect::<Result<_>>()?;
        let norm = loader.norm("model.norm.weight")?;
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            config,
        })
    }

    /// The weight that turns hidden states into logits.
    pub fn head(&self) -> &Fp16 {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all weights as they are held, norms counted in FP16 as stored.
    pub fn bytes(&self) -> Bytes {
        let norm = Bytes::plain(2 * self.config.hidden as u64);
        let layers = self.layers.iter().map(|l| {
            let linears = [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down];
            linears.into_iter().map(Weight::bytes).sum::<Bytes>() + norm + norm
        });
        let head = self.head.as_ref().map(Fp16::bytes).unwrap_or_default();
        layers.sum::<Bytes>() + self.embedding.bytes() + head + norm
    }
}

/// What loading a tensor needs.
struct Loader<'a> {
    config: &'a Config,
    weights: &'a Origin,
    format: Format,
    compute: Compute,
}

impl Loader<'_> {
    /// Embedding and, unless they are one, head.
    fn tables(&self) -> Result<(Fp16, Option<Fp16>)> {
        let (embedding, head) = table_names(self.config, self.weights);
        let embedding = self.table(embedding)?;
        let head = head.map(|name| self.table(name)).transpose()?;
        Ok((embedding, head))
    }

    fn table(&self, name: &str) -> Result<Fp16> {
        let (rows, columns) = (self.config.vocab, self.config.hidden);
        let values = self.weights.f16(name, &[rows, columns])?;
        Ok(Fp16::new(values, rows, columns))
    }

    fn norm(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.weights.f16(name, &[self.config.hidden])?;
        Ok(values.to_f32_vec())
    }

    fn layer(&self, i: usize) -> Result<Layer> {
        let norm = |name: &str| self.norm(&format!("model.layers.{i}.{name}.weight"));
        let [q, k, v, o, gate, up, down] = self.config.layer_linears();
        let linear = |(name, rows, columns): (&str, usize, usize)| {
            let name = format!("model.layers.{i}.{name}.weight");
            if let (Origin::Stored(checkpoint), Some(_)) = (self.weights, self.config.quantised) {
                let weight = stored::weight(checkpoint, self.format, &name, rows, columns)?;
                return Ok::<_, Error>(weight.computed_in(self.compute));
            }
            let values = self.weights.f16(&name, &[rows, columns])?;
            let weight = Weight::pack(self.format, values, rows, columns)?;
            Ok(weight.computed_in(self.compute))
        };
        Ok(Layer {
            input_norm: norm("input_layernorm")?,
            q: linear(q)?,
            k: linear(k)?,
            v: linear(v)?,
            o: linear(o)?,
            post_attention_norm: norm("post_attention_layernorm")?,
            gate: linear(gate)?,
            up: linear(up)?,
            down: linear(down)?,
        })
    }
}

/// Names of the embedding and, unless they are one, of the head. A tied
/// checkpoint may store the one tensor under either name.
pub fn table_names(config: &Config, weights: &Origin) -> (&'static str, Option<&'static str>) {
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    if !config.tied {
        return (embedding, Some(head));
    }
    let under_head = !weights.contains(embedding) && weights.contains(head);
    (if under_head { head } else { embedding }, None)
}
