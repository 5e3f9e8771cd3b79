//! `config.json` of a Llama checkpoint, in the layout of transformers 4
//! (`rope_theta` and `rope_scaling` at the top) or 5 (one `rope_parameters`).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// RoPE scaling of Llama 3.1 and later.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    /// Context of the unscaled model, in tokens.
    pub original_context: usize,
}

/// How bitsandbytes packed the linears of a checkpoint before it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantised {
    /// NF4, or else FP4.
    Bits4 { nf4: bool, double_quant: bool },
    /// LLM.int8(); activations of magnitude `threshold` or more are outliers.
    Int8 { threshold: f32 },
}

/// The shape of a Llama, checked: every number is usable as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    /// Even.
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: Option<Llama3Scaling>,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// The head is the embedding.
    pub tied: bool,
    pub bos: Option<u32>,
    /// Any of these ends a generation.
    pub eos: Vec<u32>,
    /// None if weights are in F16, BF16 or F32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised: Option<Quantised>,
}

/// The fields of the file that are read, before they are checked.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<Value>,
    quantization_config: Option<Value>,
    vision_config: Option<Value>,
    audio_config: Option<Value>,
    text_config: Option<Value>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMore>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    r#type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

/// Larger sizes than any Llama has are taken for damage.
const LARGEST: usize = 1 << 24;
/// With weights of at most [`LARGEST`] rows and columns, the bytes of this many
/// layers can still be counted in 64 bits.
const MOST_LAYERS: usize = 1 << 10;

impl Config {
    /// Reads `config.json` of the checkpoint folder `dir`.
    ///
    /// # Errors
    /// If the file is missing, is not JSON, or describes something that is not
    /// a plain Llama; the error names the field.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        Reader { path }.parse(&text)
    }

    /// Width of the queries of all heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Name, rows and columns of the seven linears of a decoder layer, the
    /// weights that quantisation touches.
    pub fn layer_linears(&self) -> [(&'static str, usize, usize); 7] {
        let (q, kv) = (self.q_width(), self.kv_heads * self.head_dim);
        [
            ("self_attn.q_proj", q, self.hidden),
            ("self_attn.k_proj", kv, self.hidden),
            ("self_attn.v_proj", kv, self.hidden),
            ("self_attn.o_proj", self.hidden, q),
            ("mlp.gate_proj", self.intermediate, self.hidden),
            ("mlp.up_proj", self.intermediate, self.hidden),
            ("mlp.down_proj", self.hidden, self.intermediate),
        ]
    }
}

/// Parses one file, naming it in every error.
struct Reader {
    path: PathBuf,
}

impl Reader {
    fn refuse(&self, field: &str, wanted: &str, found: impl Into<String>, remedy: &str) -> Error {
        Error::config(
            format!("{}: {field}", self.path.display()),
            wanted,
            found,
            remedy,
        )
    }

    fn parse(&self, text: &str) -> Result<Config> {
        let raw: Raw = serde_json::from_str(text).map_err(|e| {
            self.refuse(
                "content",
                "a JSON object with the fields of a Llama",
                e.to_string(),
                "use the config.json that belongs to the checkpoint",
            )
        })?;
        self.refuse_other_architectures(&raw)?;
        let at_most = |most: usize, field: &str, n: usize| {
            if (1..=most).contains(&n) {
                Ok(n)
            } else {
                let wanted = format!("a number from 1 to {most}");
                Err(self.refuse(
                    field,
                    &wanted,
                    n.to_string(),
                    "check that the file is undamaged",
                ))
            }
        };
        let size = |field: &str, n: usize| at_most(LARGEST, field, n);
        let hidden = size("hidden_size", raw.hidden_size)?;
        let heads = size("num_attention_heads", raw.num_attention_heads)?;
        let kv_heads = size(
            "num_key_value_heads",
            raw.num_key_value_heads.unwrap_or(heads),
        )?;
        if heads % kv_heads != 0 {
            return Err(self.refuse(
                "num_key_value_heads",
                &format!("a divisor of num_attention_heads = {heads}"),
                kv_heads.to_string(),
                "check that the file is undamaged",
            ));
        }
        let head_dim = size("head_dim", raw.head_dim.unwrap_or(hidden / heads))?;
        if head_dim % 2 != 0 {
            return Err(self.refuse(
                "head_dim",
                "an even number",
                head_dim.to_string(),
                "RoPE rotates pairs; check that the file is undamaged",
            ));
        }
        size("num_attention_heads * head_dim", heads * head_dim)?;
        let eps = raw.rms_norm_eps as f32;
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(self.refuse(
                "rms_norm_eps",
                "a small positive number",
                raw.rms_norm_eps.to_string(),
                "check that the file is undamaged",
            ));
        }
        let rope = raw.rope_parameters.as_ref();
        let theta = rope
            .and_then(|r| r.rope_theta)
            .or(raw.rope_theta)
            .unwrap_or(10_000.0);
        if !(theta >= 1.0 && theta.is_finite()) {
            return Err(self.refuse(
                "rope_theta",
                "a number of at least 1",
                theta.to_string(),
                "check that the file is undamaged",
            ));
        }
        Ok(Config {
            vocab: size("vocab_size", raw.vocab_size)?,
            hidden,
            intermediate: size("intermediate_size", raw.intermediate_size)?,
            layers: at_most(MOST_LAYERS, "num_hidden_layers", raw.num_hidden_layers)?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: eps,
            rope_theta: theta,
            rope_scaling: match rope.or(raw.rope_scaling.as_ref()) {
                Some(rope) => self.scaling(rope)?,
                None => None,
            },
            max_positions: size("max_position_embeddings", raw.max_position_embeddings)?,
            tied: raw.tie_word_embeddings.unwrap_or(false),
            bos: raw.bos_token_id,
            eos: match raw.eos_token_id {
                None => Vec::new(),
                Some(OneOrMore::One(id)) => vec![id],
                Some(OneOrMore::More(ids)) => ids,
            },
            quantised: match raw.quantization_config.as_ref().filter(|v| !v.is_null()) {
                Some(value) => Some(self.quantised(value)?),
                None => None,
            },
        })
    }

    fn refuse_other_architectures(&self, raw: &Raw) -> Result<()> {
        let remedy = "use a checkpoint of the plain Llama architecture";
        // A Mistral without a sliding window computes what a Llama does.
        if !matches!(raw.model_type.as_deref(), Some("llama" | "mistral")) {
            let found = format!("{:?}", raw.model_type.as_deref().unwrap_or("nothing"));
            return Err(self.refuse("model_type", "\"llama\" or \"mistral\"", found, remedy));
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(self.refuse("hidden_act", "\"silu\"", format!("{act:?}"), remedy));
        }
        for (field, value) in [
            ("attention_bias", raw.attention_bias),
            ("mlp_bias", raw.mlp_bias),
        ] {
            if value == Some(true) {
                return Err(self.refuse(field, "false", "true", remedy));
            }
        }
        if let Some(window) = raw.sliding_window.as_ref().filter(|w| !w.is_null()) {
            return Err(self.refuse("sliding_window", "null", window.to_string(), remedy));
        }
        let towers = ["vision_config", "audio_config", "text_config"];
        let towers = towers
            .iter()
            .zip([&raw.vision_config, &raw.audio_config, &raw.text_config]);
        for (field, value) in towers {
            if value.as_ref().is_some_and(|v| !v.is_null()) {
                return Err(self.refuse(
                    field,
                    "no such field: a model of text alone",
                    "it",
                    remedy,
                ));
            }
        }
        Ok(())
    }

    /// The fields that transformers writes for bitsandbytes.
    fn quantised(&self, value: &Value) -> Result<Quantised> {
        let unquantised = "use the unquantised checkpoint; this program quantises while it loads";
        let refuse = |field: &str, wanted: &str| {
            let thing = format!("quantization_config.{field}");
            let found = match &value[field] {
                Value::Null => "nothing".to_owned(),
                other => other.to_string().chars().take(80).collect(),
            };
            Err(self.refuse(&thing, wanted, found, unquantised))
        };
        if !matches!(value["quant_method"].as_str(), Some("bitsandbytes")) {
            return refuse("quant_method", "\"bitsandbytes\"");
        }
        let is_on = |field: &str| value[field].as_bool().unwrap_or(false);
        match (is_on("load_in_4bit"), is_on("load_in_8bit")) {
            (true, false) => {
                if !matches!(&value["bnb_4bit_quant_storage"], Value::Null)
                    && value["bnb_4bit_quant_storage"] != "uint8"
                {
                    return refuse("bnb_4bit_quant_storage", "\"uint8\"");
                }
                Ok(Quantised::Bits4 {
                    nf4: match value["bnb_4bit_quant_type"].as_str() {
                        Some("nf4") => true,
                        Some("fp4") => false,
                        _ => return refuse("bnb_4bit_quant_type", "\"nf4\" or \"fp4\""),
                    },
                    double_quant: is_on("bnb_4bit_use_double_quant"),
                })
            }
            (false, true) => {
                let threshold = match &value["llm_int8_threshold"] {
                    Value::Null => Some(6.0),
                    given => given.as_f64(),
                };
                match threshold
                    .map(|t| t as f32)
                    .filter(|t| *t >= 0.0 && t.is_finite())
                {
                    Some(threshold) => Ok(Quantised::Int8 { threshold }),
                    None => refuse("llm_int8_threshold", "a number of at least 0"),
                }
            }
            _ => refuse("load_in_4bit", "one of load_in_4bit and load_in_8bit"),
        }
    }

    fn scaling(&self, rope: &RawRope) -> Result<Option<Llama3Scaling>> {
        let number = |field: &str, value: Option<f64>| {
            value.filter(|v| *v > 0.0 && v.is_finite()).ok_or_else(|| {
                self.refuse(
                    &format!("RoPE {field}"),
                    "a positive number",
                    value.map_or("nothing".to_owned(), |v| v.to_string()),
                    "check that the file is undamaged",
                )
            })
        };
        match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
            None | Some("default") => Ok(None),
            Some("llama3") => {
                let scaling = Llama3Scaling {
                    factor: number("factor", rope.factor)?,
                    low_freq_factor: number("low_freq_factor", rope.low_freq_factor)?,
                    high_freq_factor: number("high_freq_factor", rope.high_freq_factor)?,
                    original_context: number(
                        "original_max_position_embeddings",
                        rope.original_max_position_embeddings.map(|n| n as f64),
                    )? as usize,
                };
                if scaling.high_freq_factor <= scaling.low_freq_factor {
                    return Err(self.refuse(
                        "RoPE high_freq_factor",
                        &format!("more than low_freq_factor = {}", scaling.low_freq_factor),
                        scaling.high_freq_factor.to_string(),
                        "check that the file is undamaged",
                    ));
                }
                Ok(Some(scaling))
            }
            Some(other) => Err(self.refuse(
                "rope_type",
                "\"default\" or \"llama3\"",
                format!("{other:?}"),
                "use a checkpoint with one of these",
            )),
        }
    }
}

/// Parses the text of a `config.json`; `path` is only for messages.
pub fn parse(text: &str, path: &Path) -> Result<Config> {
    Reader {
        path: path.to_path_buf(),
    }
    .parse(text)
}
