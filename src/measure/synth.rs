//! A checkpoint of random weights on disk, for other programs to load: the
//! numbers are those that `--weights random` gives this one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View, serialize_to_file};

use crate::error::{Error, Result};
use crate::source::config::Config;
use crate::source::origin::Origin;

/// A tensor whose numbers are made when they are written.
struct Made<'a> {
    origin: &'a Origin,
    name: String,
    shape: Vec<usize>,
}

impl View for Made<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self
            .origin
            .f16(&self.name, &self.shape)
            .expect("random numbers are there for every name");
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// Writes `config.json`, the tokenizer if there is one, and `model.safetensors`
/// of FP16 numbers drawn from `seed` to the folder `out`, in the shape of the
/// configuration in folder `dir`. Returns the path of the weights.
///
/// # Errors
/// If the configuration is not a Llama's, or a file cannot be written; the
/// weights then are not half there.
pub fn synth(dir: &Path, seed: u64, out: &Path) -> Result<PathBuf> {
    let config = Config::open(dir)?;
    fs::create_dir_all(out).map_err(|e| Error::io("make the folder", out, e))?;
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let from = dir.join(name);
        if from.is_file() && fs::canonicalize(dir).ok() != fs::canonicalize(out).ok() {
            fs::copy(&from, out.join(name)).map_err(|e| Error::io("copy", &from, e))?;
        }
    }
    let origin = Origin::Random { seed };
    let tensors = shapes(&config).into_iter().map(|(name, shape)| {
        let made = Made {
            origin: &origin,
            name: name.clone(),
            shape,
        };
        (name, made)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = out.join("model.safetensors");
    let unfinished = out.join("model.safetensors.unfinished");
    serialize_to_file(tensors, Some(metadata), &unfinished)
        .map_err(|e| Error::engine(format!("writing {}", unfinished.display()), e))?;
    fs::rename(&unfinished, &path).map_err(|e| Error::io("rename", &unfinished, e))?;
    Ok(path)
}

/// Names and shapes of all tensors of a Llama.
fn shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let table = vec![config.vocab, config.hidden];
    let norm = vec![config.hidden];
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), table.clone())];
    if !config.tied {
        shapes.push(("lm_head.weight".to_owned(), table));
    }
    for i in 0..config.layers {
        let of_layer = |name: &str| format!("model.layers.{i}.{name}.weight");
        shapes.push((of_layer("input_layernorm"), norm.clone()));
        shapes.push((of_layer("post_attention_layernorm"), norm.clone()));
        for (name, rows, columns) in config.layer_linears() {
            shapes.push((of_layer(name), vec![rows, columns]));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), norm));
    shapes
}
