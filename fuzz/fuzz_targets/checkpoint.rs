//! Any bytes as `model.safetensors`, as an index beside a whole shard, or as a
//! whole model with a configuration: refused, or tensors that can be read.
#![no_main]

use std::cell::LazyCell;
use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use llama_quant::engine::llama::Llama;
use llama_quant::quant::{Code4, Format};
use llama_quant::source::checkpoint::Checkpoint;
use tempfile::TempDir;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 3, "hidden_size": 4,
    "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8, "tie_word_embeddings": true"#;
const PACKED: &str = r#", "quantization_config": {"quant_method": "bitsandbytes",
    "load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true}"#;
const INDEX: &str = "model.safetensors.index.json";

/// A file with the tensor `a` alone.
const SHARD: &[u8] =
    b"\x3f\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}      \0\0\0\0";

thread_local! {
    static FOLDER: LazyCell<TempDir> =
        LazyCell::new(|| tempfile::tempdir().expect("a temporary folder"));
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    fs::write(dir.join(name), bytes).expect("a writable folder");
}

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else {
        return;
    };
    FOLDER.with(|folder| {
        let dir = folder.path();
        drop(fs::remove_file(dir.join(INDEX)));
        match kind % 4 {
            0 => {
                write(dir, INDEX, bytes);
                write(dir, "shard.safetensors", SHARD);
            }
            _ => write(dir, "model.safetensors", bytes),
        }
        if let Ok(checkpoint) = Checkpoint::open(dir) {
            for name in ["a", "model.norm.weight"] {
                if let Some(stored) = checkpoint.stored(name) {
                    let shape = stored.shape.to_vec();
                    drop(checkpoint.tensor(name, &shape).and_then(|t| t.to_f16()));
                }
            }
        }
        let (format, rest) = match kind % 4 {
            3 => (Format::bnb4(Code4::Nf4, true), PACKED),
            2 => (Format::Int8 { threshold: 6.0 }, ""),
            _ => (Format::Fp16, ""),
        };
        write(dir, "config.json", format!("{CONFIG}{rest}}}").as_bytes());
        if let Ok(model) = Llama::load(dir, format) {
            assert_eq!(model.layers.len(), 1);
            assert_eq!(model.layers[0].down.shape(), (4, 6));
        }
    });
});
