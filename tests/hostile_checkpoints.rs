//! What the door lets in and what it refuses: checkpoint folders in all their
//! layouts, and folders that are damaged, incomplete or ill meant.

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[path = "common/random.rs"]
mod random;
#[path = "common/refusal.rs"]
mod refusal;

use std::path::Path;

use checkpoint::{Checkpoint, SMALL, Stored, shard_name, write, write_index};
use llama_quant::Result;
use llama_quant::engine::cpu::CpuEngine;
use llama_quant::engine::llama::Llama;
use llama_quant::engine::{Decoder, Segment};
use llama_quant::quant::size::{linear_bytes, model_bytes};
use llama_quant::quant::{Code4, Format, Weight};
use llama_quant::source::config::{Config, Llama3Scaling, parse};
use llama_quant::source::tokenizer::Tokenizer;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use random::Random;
use refusal::assert_refuses;
use rstest::rstest;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

fn folder() -> TempDir {
    tempdir().expect("a temporary folder")
}

fn small() -> Checkpoint {
    Checkpoint::random(SMALL, Dtype::F16, false)
}

fn load(dir: &Path) -> Result<Llama> {
    Llama::load(dir, Format::bnb4(Code4::Nf4, true))
}

/// All weights of a model, in the order of the forward pass.
fn weights(model: Llama) -> (Vec<Weight>, Vec<Vec<f32>>) {
    let mut linears = vec![Weight::Fp16(model.embedding)];
    let mut norms = Vec::new();
    for l in model.layers {
        linears.extend([l.q, l.k, l.v, l.o, l.gate, l.up, l.down]);
        norms.extend([l.input_norm, l.post_attention_norm]);
    }
    norms.push(model.norm);
    linears.extend(model.head.map(Weight::Fp16));
    (linears, norms)
}

fn logits(model: Llama) -> Vec<f32> {
    let segment = Segment {
        slot: 0,
        start: 0,
        tokens: &[1, 2, 3, 40],
    };
    let mut engine = CpuEngine::new(model, 1, 4);
    engine.logits(&[segment]).expect("a forward pass")
}

fn read_config(config: &Value) -> Result<Config> {
    parse(&config.to_string(), Path::new("some/config.json"))
}

/// `config` with some fields replaced; null removes a field.
fn with(mut config: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("fields are an object")
    };
    for (field, value) in fields {
        if value.is_null() {
            config.as_object_mut().expect("an object").remove(&field);
        } else {
            config[&field] = value;
        }
    }
    config
}

// ---- What is accepted --------------------------------------------------------

#[test]
fn both_layouts_of_the_configuration_say_the_same() {
    let scaling = json!({
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_type": "llama3",
    });
    let four = with(
        small().config,
        json!({ "rope_theta": 500000.0, "rope_scaling": scaling }),
    );
    let parameters = with(scaling, json!({ "rope_theta": 500000.0 }));
    let no_rope = json!({ "rope_theta": null, "rope_scaling": null });
    let five = with(
        with(small().config, no_rope),
        json!({ "rope_parameters": parameters }),
    );
    let config = read_config(&four).expect("a configuration");
    assert_eq!(config.rope_theta, 500_000.0);
    let wanted = Llama3Scaling {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    assert_eq!(config.rope_scaling, Some(wanted));
    assert_eq!(read_config(&five).expect("a configuration"), config);
}

#[rstest]
#[case::none_at_all(json!({ "rope_scaling": null }))]
#[case::of_the_default_type(json!({ "rope_scaling": { "rope_type": "default" } }))]
#[case::of_the_default_type_in_the_newer_layout(
    json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 } })
)]
fn rope_without_scaling_can_be_written_in_several_ways(#[case] fields: Value) {
    let plain = read_config(&small().config).expect("a configuration");
    assert_eq!(plain.rope_scaling, None);
    let other = read_config(&with(small().config, fields)).expect("a configuration");
    assert_eq!(other, plain);
}

#[rstest]
#[case::under_its_name("rope_type", None)]
#[case::under_its_older_name("type", None)]
// transformers keeps the older name in the file when it adds the newer one.
#[case::under_both_names("rope_type", Some("type"))]
fn the_type_of_rope_scaling_is_found(#[case] name: &str, #[case] other: Option<&str>) {
    let mut scaling = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    for name in [Some(name), other].into_iter().flatten() {
        scaling[name] = json!("llama3");
    }
    let config = with(small().config, json!({ "rope_scaling": scaling }));
    let scaling = read_config(&config).expect("a configuration").rope_scaling;
    assert_eq!(scaling.map(|s| s.original_context), Some(8192));
}

#[test]
fn fields_that_a_file_may_leave_out_have_the_defaults_of_transformers() {
    let config = json!({
        "model_type": "llama", "vocab_size": 41, "hidden_size": 48, "intermediate_size": 75,
        "num_hidden_layers": 2, "num_attention_heads": 6, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
    });
    let Config {
        kv_heads,
        head_dim,
        rope_theta,
        tied,
        bos,
        eos,
        ..
    } = read_config(&config).expect("a configuration");
    assert_eq!((kv_heads, head_dim, rope_theta), (6, 8, 10_000.0));
    assert_eq!((tied, bos, eos), (false, None, vec![]));
}

#[test]
fn one_or_more_tokens_can_end_a_text() {
    let eos = |value: Value| {
        let config = with(small().config, json!({ "eos_token_id": value }));
        read_config(&config).expect("a configuration").eos
    };
    assert_eq!(eos(json!(7)), [7]);
    assert_eq!(eos(json!([7, 9])), [7, 9]);
}

#[rstest]
fn shards_load_to_the_weights_of_a_single_file(
    #[values(1, 2, 3)] shards: usize,
    #[values(false, true)] tied: bool,
) {
    let checkpoint = Checkpoint::random(SMALL, Dtype::F16, tied);
    let (one, many) = (folder(), folder());
    checkpoint.write(one.path());
    checkpoint.write_shards(many.path(), shards);
    let one = load(one.path()).expect("a checkpoint");
    let many = load(many.path()).expect("a checkpoint");
    assert_eq!(one.config, many.config);
    assert_eq!(weights(one), weights(many));
}

#[rstest]
fn values_that_every_type_holds_load_to_the_same_weights_from_each(
    #[values(Dtype::BF16, Dtype::F32)] dtype: Dtype,
) {
    let (half, other) = (folder(), folder());
    small().write(half.path());
    Checkpoint::random(SMALL, dtype, false).write(other.path());
    let half = load(half.path()).expect("a checkpoint");
    let other = load(other.path()).expect("a checkpoint");
    assert_eq!(weights(half), weights(other));
}

#[test]
fn a_tied_table_gives_the_same_logits_under_either_name() {
    let mut checkpoint = Checkpoint::random(SMALL, Dtype::F16, true);
    let (embedding, head) = (folder(), folder());
    checkpoint.write(embedding.path());
    let (name, other) = ("model.embed_tokens.weight", "lm_head.weight");
    let table = checkpoint.tensors.remove(name).expect("a table");
    checkpoint.tensors.insert(other.into(), table);
    checkpoint.write(head.path());
    let embedding = load(embedding.path()).expect("a checkpoint");
    let head = load(head.path()).expect("a checkpoint");
    assert!(embedding.head.is_none() && head.head.is_none());
    assert_eq!(embedding.bytes(), head.bytes());
    assert_eq!(logits(embedding), logits(head));
}

#[test]
fn an_untied_head_is_used_and_not_the_embedding() {
    let (untied, tied) = (folder(), folder());
    let mut checkpoint = small();
    checkpoint.write(untied.path());
    checkpoint.config["tie_word_embeddings"] = json!(true);
    checkpoint.write(tied.path());
    let untied = logits(load(untied.path()).expect("a checkpoint"));
    let tied = logits(load(tied.path()).expect("a checkpoint"));
    assert_ne!(untied, tied);
}

#[test]
fn the_largest_value_that_rounds_into_half_precision_is_accepted() {
    let mut checkpoint = Checkpoint::random(SMALL, Dtype::F32, false);
    // 65520 is half way to what would be the next number after 65504.
    let value = 65_520.0_f32.next_down();
    checkpoint.tensor("model.norm.weight").set(3, value);
    let dir = folder();
    checkpoint.write(dir.path());
    let model = load(dir.path()).expect("a checkpoint");
    assert_eq!(model.norm[3], 65_504.0);
}

// ---- What is refused: the configuration ----------------------------------------

const DAMAGED: &str = "check that the file is undamaged";
const PLAIN: &str = "use a checkpoint of the plain Llama architecture";
const SIZE: &str = "a number from 1 to 16777216";

#[rstest]
#[case::no_vocabulary(json!({ "vocab_size": 0 }), "vocab_size", SIZE, "0")]
#[case::no_width(json!({ "hidden_size": 0 }), "hidden_size", SIZE, "0")]
#[case::no_feed_forward(json!({ "intermediate_size": 0 }), "intermediate_size", SIZE, "0")]
#[case::no_layers(json!({ "num_hidden_layers": 0 }), "num_hidden_layers", "1 to 1024", "0")]
#[case::no_heads(json!({ "num_attention_heads": 0 }), "num_attention_heads", SIZE, "0")]
#[case::no_keys(json!({ "num_key_value_heads": 0 }), "num_key_value_heads", SIZE, "0")]
#[case::no_width_of_heads(json!({ "head_dim": 0 }), "head_dim", SIZE, "0")]
#[case::more_heads_than_width(
    json!({ "head_dim": null, "num_attention_heads": 64, "num_key_value_heads": 64 }),
    "head_dim", SIZE, "0"
)]
#[case::no_positions(
    json!({ "max_position_embeddings": 0 }), "max_position_embeddings", SIZE, "0"
)]
#[case::a_huge_vocabulary(json!({ "vocab_size": 1_u64 << 60 }), "vocab_size", SIZE, "1152921504")]
#[case::a_huge_width(json!({ "hidden_size": 16_777_217 }), "hidden_size", SIZE, "16777217")]
#[case::many_wide_heads(
    json!({ "num_attention_heads": 1 << 16, "head_dim": 1 << 16 }),
    "num_attention_heads * head_dim", SIZE, "4294967296"
)]
#[case::layers_without_end(
    json!({ "num_hidden_layers": 1025 }), "num_hidden_layers", "1 to 1024", "1025"
)]
#[case::queries_that_cannot_share_keys(
    json!({ "num_key_value_heads": 4 }),
    "num_key_value_heads", "a divisor of num_attention_heads = 6", "4"
)]
#[case::more_keys_than_queries(
    json!({ "num_key_value_heads": 12 }),
    "num_key_value_heads", "a divisor of num_attention_heads = 6", "12"
)]
#[case::no_epsilon(json!({ "rms_norm_eps": 0 }), "rms_norm_eps", "positive", "0")]
#[case::an_epsilon_that_f32_cannot_hold(
    json!({ "rms_norm_eps": 1e-50 }), "rms_norm_eps", "positive", "0.0"
)]
#[case::rope_without_a_base(json!({ "rope_theta": 0 }), "rope_theta", "at least 1", "0")]
#[case::scaling_without_a_factor(
    json!({ "rope_scaling": { "rope_type": "llama3" } }),
    "RoPE factor", "a positive number", "nothing"
)]
#[case::scaling_by_a_negative_factor(
    json!({ "rope_scaling": { "rope_type": "llama3", "factor": -8 } }),
    "RoPE factor", "a positive number", "-8"
)]
#[case::scaling_of_no_context(
    json!({ "rope_scaling": {
        "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 0,
    } }),
    "RoPE original_max_position_embeddings", "a positive number", "0"
)]
#[case::scaling_with_frequencies_in_the_wrong_order(
    json!({ "rope_scaling": {
        "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
        "original_max_position_embeddings": 64,
    } }),
    "RoPE high_freq_factor", "more than low_freq_factor = 4", "4"
)]
fn numbers_that_no_llama_has_are_refused(
    #[case] fields: Value,
    #[case] field: &str,
    #[case] wanted: &str,
    #[case] found: &str,
) {
    let thing = format!("config.json: {field}");
    let config = read_config(&with(small().config, fields));
    assert_refuses(config, [&thing, wanted, found, DAMAGED]);
}

#[test]
fn heads_of_an_odd_width_are_refused() {
    let config = read_config(&with(small().config, json!({ "head_dim": 9 })));
    let said = ["config.json: head_dim", "even", "9", "RoPE rotates pairs"];
    assert_refuses(config, said);
}

#[rstest]
#[case::another_model(json!({ "model_type": "gemma" }), "model_type", "\"llama\"", "gemma")]
#[case::a_mistral_with_a_sliding_window(
    json!({ "model_type": "mistral", "sliding_window": 4096 }), "sliding_window", "null", "4096"
)]
#[case::a_vision_tower(json!({ "vision_config": {} }), "vision_config", "text alone", "it")]
#[case::a_text_model_within_another(json!({ "text_config": {} }), "text_config", "text alone", "it")]
#[case::a_model_without_a_type(json!({ "model_type": null }), "model_type", "\"llama\"", "nothing")]
#[case::another_activation(json!({ "hidden_act": "gelu" }), "hidden_act", "\"silu\"", "gelu")]
#[case::biases_in_attention(json!({ "attention_bias": true }), "attention_bias", "false", "true")]
#[case::biases_in_the_feed_forward(json!({ "mlp_bias": true }), "mlp_bias", "false", "true")]
#[case::a_sliding_window(json!({ "sliding_window": 4096 }), "sliding_window", "null", "4096")]
fn architectures_other_than_the_plain_llama_are_refused(
    #[case] fields: Value,
    #[case] field: &str,
    #[case] wanted: &str,
    #[case] found: &str,
) {
    let thing = format!("config.json: {field}");
    let config = read_config(&with(small().config, fields));
    assert_refuses(config, [&thing, wanted, found, PLAIN]);
}

#[test]
fn a_mistral_without_a_sliding_window_is_read_as_the_llama_that_it_is() {
    let fields = json!({ "model_type": "mistral", "sliding_window": null });
    let mistral = read_config(&with(small().config, fields)).expect("a configuration");
    assert_eq!(
        mistral,
        read_config(&small().config).expect("a configuration")
    );
}

#[rstest]
#[case::gptq(json!({ "quant_method": "gptq", "bits": 4 }), "quant_method", "bitsandbytes", "gptq")]
#[case::awq(json!({ "quant_method": "awq" }), "quant_method", "bitsandbytes", "awq")]
#[case::fp8(json!({ "quant_method": "fbgemm_fp8" }), "quant_method", "bitsandbytes", "fp8")]
#[case::nothing_said(json!({}), "quant_method", "bitsandbytes", "nothing")]
#[case::not_an_object(json!(4), "quant_method", "bitsandbytes", "nothing")]
#[case::neither_4_nor_8_bits(
    json!({ "quant_method": "bitsandbytes" }), "load_in_4bit", "one of", "nothing"
)]
#[case::both(
    json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": true }),
    "load_in_4bit", "one of", "true"
)]
#[case::another_code(
    json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf5" }),
    "bnb_4bit_quant_type", "nf4", "nf5"
)]
#[case::packed_into_another_type(
    json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
    }),
    "bnb_4bit_quant_storage", "uint8", "bfloat16"
)]
#[case::a_negative_threshold(
    json!({ "quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_threshold": -1 }),
    "llm_int8_threshold", "at least 0", "-1"
)]
fn a_quantisation_that_is_not_known_is_refused_by_name(
    #[case] quantised: Value,
    #[case] field: &str,
    #[case] wanted: &str,
    #[case] found: &str,
) {
    let fields = json!({ "quantization_config": quantised });
    let config = read_config(&with(small().config, fields));
    let thing = format!("quantization_config.{field}");
    assert_refuses(config, [&thing, wanted, found, "use the unquantised"]);
}

#[rstest]
#[case::in_the_older_layout(json!({ "rope_scaling": { "type": "linear", "factor": 2 } }), "linear")]
#[case::in_the_newer_layout(json!({ "rope_parameters": { "rope_type": "yarn" } }), "yarn")]
fn kinds_of_rope_scaling_that_are_not_implemented_are_refused(
    #[case] fields: Value,
    #[case] found: &str,
) {
    let config = read_config(&with(small().config, fields));
    let wanted = "\"default\" or \"llama3\"";
    assert_refuses(
        config,
        [
            "rope_type",
            wanted,
            found,
            "use a checkpoint with one of these",
        ],
    );
}

#[rstest]
#[case::that_is_empty("", "EOF")]
#[case::that_is_cut_off("{\"model_type\": \"lla", "EOF")]
#[case::that_is_not_json("<!DOCTYPE html>", "expected value at line 1 column 1")]
#[case::of_another_type("[1, 2]", "")]
#[case::without_the_fields("{\"model_type\": \"llama\"}", "missing field `vocab_size`")]
#[case::with_text_for_a_number(
    "{\"model_type\": \"llama\", \"vocab_size\": \"41\"}",
    "string \"41\", expected usize"
)]
#[case::with_a_negative_size(
    "{\"model_type\": \"llama\", \"vocab_size\": -1}",
    "integer `-1`, expected usize"
)]
fn a_file_that_is_no_configuration_is_refused(#[case] text: &str, #[case] found: &str) {
    let config = parse(text, Path::new("some/config.json"));
    let thing = "some/config.json: content";
    let remedy = "use the config.json that belongs to the checkpoint";
    assert_refuses(config, [thing, "a JSON object", found, remedy]);
}

/// Asserts that a file that is not there is named.
#[track_caller]
fn assert_not_found<T>(result: Result<T>, path: &Path) {
    let error = result.err().expect("the file is not there").to_string();
    let wanted = format!("cannot read {}: No such file", path.display());
    assert!(error.starts_with(&wanted), "{error}");
}

#[test]
fn a_folder_without_a_configuration_is_refused() {
    let dir = folder();
    assert_not_found(load(dir.path()), &dir.path().join("config.json"));
}

// ---- What is refused: tensors ----------------------------------------------------

const Q: &str = "model.layers.1.self_attn.q_proj.weight";

#[rstest]
#[case::of_a_layer(
    Q,
    "[60, 52]",
    "nearest name is model.layers.0.self_attn.q_proj.weight"
)]
#[case::of_the_head("lm_head.weight", "[41, 52]", "no such tensor among 20")]
fn a_missing_tensor_is_refused(#[case] name: &str, #[case] wanted: &str, #[case] found: &str) {
    let mut checkpoint = small();
    checkpoint.tensors.remove(name).expect("a tensor");
    let dir = folder();
    checkpoint.write(dir.path());
    assert_refuses(
        load(dir.path()),
        [name, wanted, found, "whole Llama checkpoint"],
    );
}

#[test]
fn tensors_under_other_names_are_missing_and_the_nearest_is_named() {
    let mut checkpoint = small();
    let tensors = std::mem::take(&mut checkpoint.tensors).into_iter();
    checkpoint.tensors = tensors
        .map(|(name, t)| (format!("language_{name}"), t))
        .collect();
    let dir = folder();
    checkpoint.write(dir.path());
    let found = "nearest name is language_model.embed_tokens.weight";
    let said = [
        "model.embed_tokens.weight",
        "[41, 52]",
        found,
        "whole Llama checkpoint",
    ];
    assert_refuses(load(dir.path()), said);
}

#[rstest]
#[case::too_few_rows(&[20, 52])]
#[case::turned_round(&[52, 60])]
#[case::flat(&[60 * 52])]
#[case::without_a_shape(&[])]
fn a_tensor_of_another_shape_is_refused(#[case] shape: &[usize]) {
    let mut checkpoint = small();
    *checkpoint.tensor(Q) = Stored::random(Dtype::F16, shape, &mut Random::new(1));
    let dir = folder();
    checkpoint.write(dir.path());
    let found = format!("{shape:?} in");
    let remedy = "check that config.json belongs to these weights";
    assert_refuses(load(dir.path()), [Q, "[60, 52]", &found, remedy]);
}

#[test]
fn a_tensor_of_another_type_is_refused() {
    let mut checkpoint = small();
    *checkpoint.tensor(Q) = Stored::random(Dtype::I64, &[60, 52], &mut Random::new(1));
    let dir = folder();
    checkpoint.write(dir.path());
    let said = [
        Q,
        "type F16, BF16 or F32",
        "I64 in",
        "use the unquantised checkpoint",
    ];
    assert_refuses(load(dir.path()), said);
}

#[rstest]
#[case::not_a_number(f32::NAN, "NaN")]
#[case::infinity(f32::INFINITY, "inf")]
#[case::negative_infinity(f32::NEG_INFINITY, "-inf")]
fn a_value_that_is_not_finite_is_refused_with_its_place(
    #[case] value: f32,
    #[case] found: &str,
    #[values(Dtype::F16, Dtype::BF16, Dtype::F32)] dtype: Dtype,
    #[values("model.embed_tokens.weight", "model.norm.weight", Q)] name: &str,
) {
    let mut checkpoint = Checkpoint::random(SMALL, dtype, false);
    checkpoint.tensor(name).set(51, value);
    let dir = folder();
    checkpoint.write(dir.path());
    let found = format!("{found} at element 51 in {}", dir.path().display());
    assert_refuses(load(dir.path()), [name, "±65504", &found, "use another"]);
}

#[rstest]
#[case::just_beyond(Dtype::F32, 65_520.0, "65520 at element 7")]
#[case::far_beyond(Dtype::F32, -1e30, "-1000000000000000000000000000000 at element 7")]
#[case::beyond_in_bfloat(Dtype::BF16, 131_072.0, "131072 at element 7")]
fn a_value_beyond_the_range_of_half_precision_is_refused(
    #[case] dtype: Dtype,
    #[case] value: f32,
    #[case] found: &str,
) {
    let mut checkpoint = Checkpoint::random(SMALL, dtype, false);
    checkpoint.tensor(Q).set(7, value);
    let dir = folder();
    checkpoint.write(dir.path());
    assert_refuses(load(dir.path()), [Q, "±65504", found, "wider type"]);
}

// ---- What is refused: files --------------------------------------------------------

/// A file with `header`, whatever it says, and `data` zero bytes.
fn with_header(header: &[u8], data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header, &vec![0; data]].concat()
}

fn with_length(mut file: Vec<u8>, length: u64) -> Vec<u8> {
    file[..8].copy_from_slice(&length.to_le_bytes());
    file
}

fn cut(mut file: Vec<u8>, by: usize) -> Vec<u8> {
    file.truncate(file.len() - by);
    file
}

const F32_PAIR: &str = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": OFFSETS}}"#;

fn pair(offsets: &str, data: usize) -> Vec<u8> {
    with_header(F32_PAIR.replace("OFFSETS", offsets).as_bytes(), data)
}

#[rstest]
#[case::that_is_empty(vec![], "0 bytes in which header too small")]
#[case::of_seven_bytes(vec![0; 7], "7 bytes in which header too small")]
#[case::cut_in_its_data(cut(small().file(), 1), "file not fully covered")]
#[case::cut_in_its_header(small().file()[..400].to_vec(), "400 bytes in which invalid header length")]
#[case::with_more_data_than_tensors(pair("[8, 16]", 17), "file not fully covered")]
#[case::with_a_header_of_2_to_the_64_bytes(
    with_length(small().file(), u64::MAX), "header too large"
)]
#[case::with_a_header_longer_than_the_file(
    with_length(small().file(), 90_000_000), "invalid header length"
)]
#[case::with_a_header_of_nothing(with_header(b"", 8), "invalid JSON in header")]
#[case::with_a_header_that_is_not_json(with_header(b"PK\x03\x04 a zip", 8), "invalid JSON")]
#[case::with_a_header_that_is_not_text(with_header(b"\xff\xfe{}", 8), "invalid UTF-8")]
#[case::with_tensors_that_overlap(pair("[4, 12]", 16), "invalid offset for tensor `b`")]
#[case::with_a_gap_between_tensors(pair("[12, 20]", 20), "invalid offset for tensor `b`")]
#[case::with_a_tensor_that_ends_before_it_starts(pair("[8, 0]", 16), "invalid offset for tensor")]
#[case::with_a_tensor_larger_than_its_bytes(pair("[8, 12]", 12), "invalid shape, data type")]
#[case::with_two_tensors_of_one_name(
    with_header(
        br#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#,
        8
    ),
    "invalid offset for tensor `a`"
)]
#[case::with_a_shape_beyond_all_numbers(
    with_header(
        br#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 2], "data_offsets": [0, 0]}}"#,
        0
    ),
    "overflow"
)]
fn a_file_that_is_not_whole_safetensors_is_refused(#[case] file: Vec<u8>, #[case] found: &str) {
    let dir = folder();
    small().write_config(dir.path());
    let path = dir.path().join("model.safetensors");
    write(&path, &file);
    let thing = path.display().to_string();
    let said = [
        &thing,
        "a whole safetensors file",
        found,
        "download the file again",
    ];
    assert_refuses(load(dir.path()), said);
}

#[test]
fn a_folder_without_weights_is_refused() {
    let dir = folder();
    small().write_config(dir.path());
    let thing = dir.path().display().to_string();
    let wanted = "model.safetensors or model.safetensors.index.json";
    assert_refuses(
        load(dir.path()),
        [&thing, wanted, "neither", "name a folder that holds"],
    );
}

#[test]
fn an_index_that_names_a_shard_that_is_not_there_is_refused() {
    let dir = folder();
    small().write_shards(dir.path(), 3);
    let missing = dir.path().join(shard_name(1, 3));
    std::fs::remove_file(&missing).expect("a shard");
    let thing = missing.display().to_string();
    let said = [
        &thing,
        "the shard that the index names",
        "no such file",
        "download",
    ];
    assert_refuses(load(dir.path()), said);
}

#[test]
fn an_index_that_names_a_tensor_that_its_shard_lacks_is_refused() {
    let dir = folder();
    let mut index = small().write_shards(dir.path(), 2);
    let other = json!(shard_name(1, 2));
    assert_ne!(index["weight_map"]["lm_head.weight"], other);
    index["weight_map"]["lm_head.weight"] = other;
    write_index(dir.path(), &index);
    let said = [
        "lm_head.weight",
        "model-00002-of-00002.safetensors as the index says",
        "none of that name",
        "from one revision",
    ];
    assert_refuses(load(dir.path()), said);
}

#[test]
fn a_tensor_that_the_index_leaves_out_is_missing() {
    let dir = folder();
    let mut index = small().write_shards(dir.path(), 2);
    let map = index["weight_map"].as_object_mut().expect("an object");
    map.remove("lm_head.weight").expect("an entry");
    write_index(dir.path(), &index);
    let said = [
        "lm_head.weight",
        "[41, 52]",
        "no such tensor",
        "whole Llama",
    ];
    assert_refuses(load(dir.path()), said);
}

#[rstest]
fn an_index_that_leads_out_of_its_folder_is_refused(
    #[values(
        "../../x",
        "/etc/passwd",
        "a/b.safetensors",
        "./x",
        "x/",
        "..",
        ".",
        ""
    )]
    name: &str,
) {
    let dir = folder();
    let mut index = small().write_shards(dir.path(), 2);
    index["weight_map"]["lm_head.weight"] = json!(name);
    write_index(dir.path(), &index);
    let thing = "model.safetensors.index.json";
    let found = format!("{name:?}");
    let said = [
        thing,
        "without folders",
        &found,
        "unless you know where it comes from",
    ];
    assert_refuses(load(dir.path()), said);
}

#[rstest]
#[case::that_is_not_json("{", "EOF")]
#[case::without_a_map("{\"metadata\": {}}", "missing field `weight_map`")]
#[case::with_a_map_of_another_type("{\"weight_map\": {\"a\": 1}}", "expected a string")]
fn an_index_that_cannot_be_read_is_refused(#[case] text: &str, #[case] found: &str) {
    let dir = folder();
    small().write_shards(dir.path(), 2);
    write(
        &dir.path().join("model.safetensors.index.json"),
        text.as_bytes(),
    );
    let wanted = "a JSON object with a weight_map";
    assert_refuses(
        load(dir.path()),
        ["index.json", wanted, found, "download the file again"],
    );
}

// ---- The tokenizer -----------------------------------------------------------------

/// A tokenizer of whole words.
fn word_tokenizer(vocabulary: Value, fields: Value) -> Value {
    let plain = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "?" },
    });
    with(plain, fields)
}

/// Opens a tokenizer for a model of 41 tokens.
fn open_tokenizer(tokenizer: &[u8]) -> Result<Tokenizer> {
    let dir = folder();
    write(&dir.path().join("tokenizer.json"), tokenizer);
    let config = read_config(&small().config).expect("a configuration");
    Tokenizer::open(dir.path(), &config)
}

const OTHER_TOKENIZER: &str = "use the tokenizer.json that belongs to the checkpoint";

#[test]
fn a_tokenizer_whose_last_id_is_the_models_last_is_accepted() {
    let words = json!({ "?": 0, "a": 3, "b": 40 });
    let tokenizer = word_tokenizer(words, json!({}));
    let tokenizer = open_tokenizer(tokenizer.to_string().as_bytes()).expect("a tokenizer");
    assert_eq!(tokenizer.encode("b a what").expect("ids"), [40, 3, 0]);
}

#[test]
fn padding_and_truncation_that_a_tokenizer_asks_for_are_not_done() {
    let fields = json!({
        "truncation": {
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        },
        "padding": {
            "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "?",
        },
    });
    let tokenizer = word_tokenizer(json!({ "?": 0, "a": 3 }), fields);
    let tokenizer = open_tokenizer(tokenizer.to_string().as_bytes()).expect("a tokenizer");
    assert_eq!(tokenizer.encode("a a a").expect("ids"), [3, 3, 3]);
}

#[rstest]
#[case::of_a_word(json!({ "?": 0, "b": 41 }), json!([]), "id 41")]
#[case::of_an_added_token(
    (0..41).map(|id| (format!("word{id}"), json!(id))).collect(),
    json!([{
        "id": 41, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    }]),
    "id 41"
)]
fn a_tokenizer_with_an_id_beyond_the_vocabulary_is_refused(
    #[case] vocabulary: Value,
    #[case] added: Value,
    #[case] found: &str,
) {
    let fields = json!({ "added_tokens": added });
    let tokenizer = word_tokenizer(vocabulary, fields).to_string();
    let wanted = "ids below the model's vocab_size = 41";
    assert_refuses(
        open_tokenizer(tokenizer.as_bytes()),
        ["tokenizer.json", wanted, found, OTHER_TOKENIZER],
    );
}

#[test]
fn a_tokenizer_without_words_is_refused() {
    let tokenizer = word_tokenizer(json!({}), json!({})).to_string();
    let said = [
        "tokenizer.json",
        "vocab_size = 41",
        "an empty vocabulary",
        OTHER_TOKENIZER,
    ];
    assert_refuses(open_tokenizer(tokenizer.as_bytes()), said);
}

#[rstest]
#[case::that_is_empty(b"", "EOF")]
#[case::that_is_not_json(b"not found", "expected")]
#[case::that_is_not_text(b"\xff\xfe", "")]
#[case::without_a_model(b"{\"version\": \"1.0\"}", "")]
fn a_file_that_is_no_tokenizer_is_refused(#[case] file: &[u8], #[case] found: &str) {
    let wanted = "the JSON of a Hugging Face fast tokenizer";
    let said = ["tokenizer.json", wanted, found, OTHER_TOKENIZER];
    assert_refuses(open_tokenizer(file), said);
}

#[test]
fn a_folder_without_a_tokenizer_is_refused() {
    let dir = folder();
    let config = read_config(&small().config).expect("a configuration");
    let path = dir.path().join("tokenizer.json");
    assert_not_found(Tokenizer::open(dir.path(), &config), &path);
}

#[test]
fn ids_that_no_word_has_are_no_words() {
    let words = json!({ "?": 0, "a": 3, "b": 40 });
    let tokenizer = word_tokenizer(words, json!({})).to_string();
    let tokenizer = open_tokenizer(tokenizer.as_bytes()).expect("a tokenizer with holes");
    assert_eq!(tokenizer.decode(&[3, 17, 40, 9999]).expect("text"), "a b");
}

#[rstest]
#[case::of_words_that_are_not_there(json!([["a", "z"]]))]
#[case::into_a_word_that_is_not_there(json!([["a", "b"]]))]
#[case::that_is_no_pair(json!(["a"]))]
fn a_merge_that_cannot_be_is_refused(#[case] merges: Value) {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": merges });
    let tokenizer = word_tokenizer(json!({}), json!({ "model": model })).to_string();
    let wanted = "the JSON of a Hugging Face fast tokenizer";
    let said = ["tokenizer.json", wanted, "", OTHER_TOKENIZER];
    assert_refuses(open_tokenizer(tokenizer.as_bytes()), said);
}

#[test]
fn an_added_token_behind_a_hole_is_refused_because_it_would_get_another_id() {
    let tokenizer = byte_tokenizer().replace("\"id\":6", "\"id\":9");
    assert_ne!(tokenizer, byte_tokenizer());
    let said = ["added token \"<s>\"", "id 9", "id 6", OTHER_TOKENIZER];
    assert_refuses(open_tokenizer(tokenizer.as_bytes()), said);
}

/// A tokenizer of bytes as Llama 3's, small.
fn byte_tokenizer() -> String {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 6, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": "\\p{L}+|\\s+" }, "behavior": "Isolated",
              "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
              "use_regex": false },
        ] },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                     "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5 },
            "merges": [["a", "b"], ["ab", "c"]],
        },
    })
    .to_string()
}

#[test]
fn the_small_tokenizer_of_bytes_works_undamaged() {
    let tokenizer = open_tokenizer(byte_tokenizer().as_bytes()).expect("a tokenizer");
    assert_eq!(
        tokenizer.encode("abc ab<s>c").expect("ids"),
        [4, 5, 3, 6, 2]
    );
}

// ---- Whatever comes ------------------------------------------------------------------

/// Some bytes of `file[..end]` replaced, and perhaps its end cut off.
fn damaged(file: &[u8], end: usize, bytes: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    let mut file = file.to_vec();
    for (at, byte) in bytes {
        file[at.index(end)] = *byte;
    }
    if let Some(cut) = cut {
        file.truncate(cut.index(file.len()));
    }
    file
}

fn damage() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    // Digits and brackets keep some headers readable, with other numbers.
    let byte = prop_oneof![any::<u8>(), b'0'..=b'9', Just(b'['), Just(b'"'), Just(b' ')];
    let bytes = vec((any::<Index>(), byte), 0..8);
    (bytes, proptest::option::of(any::<Index>()))
}

proptest! {
    #[test]
    fn a_damaged_header_never_causes_a_panic((bytes, cut) in damage()) {
        let file = small().file();
        let length = u64::from_le_bytes(*file.first_chunk().expect("a length"));
        let dir = folder();
        small().write_config(dir.path());
        let damaged = damaged(&file, 8 + length as usize, &bytes, cut);
        write(&dir.path().join("model.safetensors"), &damaged);
        match load(dir.path()) {
            Ok(_) => prop_assert_eq!(damaged.len(), file.len(), "a cut file loads"),
            Err(error) => prop_assert!(error.to_string().starts_with("checkpoint "), "{}", error),
        }
    }

    #[test]
    fn a_damaged_index_never_causes_a_panic((bytes, cut) in damage()) {
        let dir = folder();
        let index = small().write_shards(dir.path(), 2).to_string();
        let damaged = damaged(index.as_bytes(), index.len(), &bytes, cut);
        write(&dir.path().join("model.safetensors.index.json"), &damaged);
        if let Err(error) = load(dir.path()) {
            prop_assert!(error.to_string().contains(&*dir.path().to_string_lossy())
                || error.to_string().starts_with("checkpoint "), "{}", error);
        }
    }

    #[test]
    fn a_damaged_configuration_never_causes_a_panic((bytes, cut) in damage()) {
        let config = small().config.to_string();
        let damaged = damaged(config.as_bytes(), config.len(), &bytes, cut);
        let damaged = String::from_utf8_lossy(&damaged);
        if let Ok(config) = parse(&damaged, Path::new("config.json")) {
            model_bytes(&config, Format::Fp16);
        }
    }

    #[test]
    fn a_damaged_tokenizer_never_causes_a_panic((bytes, cut) in damage()) {
        let tokenizer = byte_tokenizer();
        let damaged = damaged(tokenizer.as_bytes(), tokenizer.len(), &bytes, cut);
        if let Ok(tokenizer) = open_tokenizer(&damaged)
            && let Ok(ids) = tokenizer.encode("abc ab<s> cab\u{202e}\0")
        {
            drop(tokenizer.decode(&ids));
        }
    }

    #[test]
    fn the_bytes_of_any_shape_that_is_accepted_can_be_counted(
        sizes in proptest::array::uniform6(prop_oneof![1_u64..200, Just(1_u64 << 24), 1..1_u64 << 24]),
        layers in 1_u64..2000,
    ) {
        let [vocab, hidden, intermediate, heads, head_dim, sharing] = sizes;
        let config = with(small().config, json!({
            "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": (heads / sharing).max(1), "head_dim": head_dim,
        }));
        let Ok(config) = read_config(&config) else {
            return Ok(());
        };
        for format in [Format::Fp16, Format::bnb4(Code4::Fp4, false), Format::Int8 { threshold: 0.0 }] {
            let linears = config.layer_linears().map(|(_, rows, columns)| {
                u128::from(linear_bytes(format, rows, columns).with_state)
            });
            let layer = linears.iter().sum::<u128>() + 4 * u128::from(hidden);
            let tables = 4 * u128::from(vocab) * u128::from(hidden) + 2 * u128::from(hidden);
            let wanted = u128::from(layers) * layer + tables;
            prop_assert_eq!(u128::from(model_bytes(&config, format).with_state), wanted);
        }
    }
}
