//! Bytes of models in every format: from shapes alone, and of what is loaded.

mod common;

use std::path::Path;

use common::{Tensors, golden};
use llama_quant::engine::llama::Llama;
use llama_quant::quant::size::{Bytes, MIB, model_bytes};
use llama_quant::quant::{Code4, Format};
use llama_quant::source::config::{Config, parse};
use rstest::rstest;
use serde_json::json;

const INT8: Format = Format::Int8 { threshold: 6.0 };

fn llama_3_2_1b() -> Config {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    Config::open(&fixtures.join("configs/llama-3.2-1b")).expect("a configuration")
}

#[test]
fn llama_3_2_1b_has_1_235_814_400_parameters() {
    let bytes = model_bytes(&llama_3_2_1b(), Format::Fp16);
    assert_eq!(bytes, Bytes::plain(2 * 1_235_814_400));
}

/// Parameters as the original study printed them (as "MB", and with 128 bytes
/// of a rotary buffer more); with state as bitsandbytes stores it.
#[rstest]
#[case::fp16(Format::Fp16, "2357.129", "2357.13")]
#[case::nf4(Format::bnb4(Code4::Nf4, true), "965.129", "979.86")]
#[case::fp4(Format::bnb4(Code4::Fp4, true), "965.129", "979.86")]
#[case::nf4_without_double_quantisation(Format::bnb4(Code4::Nf4, false), "965.129", "1023.13")]
#[case::fp4_without_double_quantisation(Format::bnb4(Code4::Fp4, false), "965.129", "1023.13")]
#[case::int8(INT8, "1429.129", "1430.57")]
fn llama_3_2_1b_has_the_published_size(
    #[case] format: Format,
    #[case] parameters: &str,
    #[case] with_state: &str,
) {
    let bytes = model_bytes(&llama_3_2_1b(), format);
    let mib = |bytes: u64| bytes as f64 / MIB;
    assert_eq!(format!("{:.3}", mib(bytes.parameters)), parameters);
    assert_eq!(format!("{:.2}", mib(bytes.with_state)), with_state);
}

#[test]
fn row_scales_of_int8_take_1_44_mib_of_llama_3_2_1b() {
    let bytes = model_bytes(&llama_3_2_1b(), INT8);
    // One f32 for each output feature of the seven linears of 16 layers.
    let rows = 16 * (2 * 2048 + 2 * 512 + 2 * 8192 + 2048);
    assert_eq!(bytes.with_state - bytes.parameters, 4 * rows);
    assert_eq!(format!("{:.2}", (4 * rows) as f64 / MIB), "1.44");
}

#[rstest]
fn a_loaded_checkpoint_takes_the_bytes_of_its_shape(
    #[values("tied_gqa_llama3rope", "untied_mha_plain")] checkpoint: &str,
    #[values(
        Format::Fp16,
        Format::bnb4(Code4::Nf4, true),
        Format::bnb4(Code4::Nf4, false),
        Format::bnb4(Code4::Fp4, true),
        Format::Bnb4 { code: Code4::Fp4, block: 4096, double_quant: true },
        INT8
    )]
    format: Format,
) {
    let model = Llama::load(&golden("llama").join(checkpoint), format).expect("a checkpoint");
    assert_eq!(model.bytes(), model_bytes(&model.config, format));
}

#[rstest]
fn a_half_precision_checkpoint_takes_the_bytes_of_its_file(
    #[values("tied_gqa_llama3rope", "untied_mha_plain")] checkpoint: &str,
) {
    let dir = golden("llama").join(checkpoint);
    let file = Tensors::open(dir.join("model.safetensors"));
    let names = file.names();
    let numbers = names.iter().map(|name| file.numbers(name).len() as u64);
    let bytes = model_bytes(&Config::open(&dir).expect("a configuration"), Format::Fp16);
    assert_eq!(bytes, Bytes::plain(2 * numbers.sum::<u64>()));
}

/// Width, feed-forward width, layers, queries, keys, vocabulary.
type Widths = [usize; 6];

#[rstest]
#[case::llama_2_7b("llama", [4096, 11_008, 32, 32, 32, 32_000], None, false, 6_738_415_616)]
#[case::llama_3_8b("llama", [4096, 14_336, 32, 32, 8, 128_256], None, false, 8_030_261_248)]
#[case::llama_3_1_8b("llama", [4096, 14_336, 32, 32, 8, 128_256], Some(8.0), false, 8_030_261_248)]
#[case::llama_3_2_1b("llama", [2048, 8192, 16, 32, 8, 128_256], Some(32.0), true, 1_235_814_400)]
#[case::llama_3_2_3b("llama", [3072, 8192, 28, 24, 8, 128_256], Some(32.0), true, 3_212_749_824)]
#[case::mistral_7b("mistral", [4096, 14_336, 32, 32, 8, 32_768], None, false, 7_248_023_552)]
fn published_models_have_their_published_number_of_parameters(
    #[case] kind: &str,
    #[case] widths: Widths,
    #[case] factor: Option<f64>,
    #[case] tied: bool,
    #[case] parameters: u64,
) {
    let [hidden, intermediate, layers, heads, kv_heads, vocab] = widths;
    let scaling = factor.map(|factor| {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        })
    });
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": kind, "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "rope_scaling": scaling,
        "max_position_embeddings": 131_072, "tie_word_embeddings": tied, "attention_bias": false,
        "sliding_window": null, "torch_dtype": "bfloat16", "pretraining_tp": 1,
    });
    let config = parse(&config.to_string(), Path::new("config.json")).expect("a configuration");
    let bytes = model_bytes(&config, Format::Fp16);
    assert_eq!(bytes.parameters, 2 * parameters);
}
