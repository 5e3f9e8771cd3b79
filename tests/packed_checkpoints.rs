//! Checkpoints that bitsandbytes packed before transformers saved them are
//! taken as they are, and damaged ones refused.

#[path = "common/mod.rs"]
mod common;
#[path = "common/refusal.rs"]
mod refusal;

use std::fs;
use std::path::Path;

use common::{Tensors, golden};
use half::f16;
use llama_quant::engine::cpu::CpuEngine;
use llama_quant::engine::llama::Llama;
use llama_quant::engine::{Decoder, Segment};
use llama_quant::quant::{Code4, Compute, Format, Weight};
use llama_quant::source::config::{Config, Quantised};
use refusal::assert_refuses;
use rstest::rstest;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

const NF4: Format = Format::bnb4(Code4::Nf4, true);
const FP4: Format = Format::bnb4(Code4::Fp4, false);
const INT8: Format = Format::Int8 { threshold: 6.0 };

fn linears(model: &Llama) -> Vec<(String, &Weight)> {
    let layers = model.layers.iter().enumerate();
    let named = layers.flat_map(|(i, l)| {
        let weights = [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down];
        let names = model.config.layer_linears().map(|(name, _, _)| name);
        let full = move |name| format!("model.layers.{i}.{name}.weight");
        names.map(full).into_iter().zip(weights).collect::<Vec<_>>()
    });
    named.collect()
}

fn dequantised(weight: &Weight) -> Vec<f32> {
    match weight {
        Weight::Bnb4(w) => w.dequantise(Compute::F16),
        Weight::Int8(w) => w.dequantise(),
        Weight::Fp16(_) => panic!("a packed weight"),
    }
}

#[rstest]
#[case::nf4("nf4", NF4)]
#[case::fp4("fp4", FP4)]
#[case::int8("int8", INT8)]
fn packed_weights_come_back_as_bitsandbytes_unpacks_them(
    #[case] name: &str,
    #[case] format: Format,
) {
    let dir = golden("bnb-checkpoints").join(name);
    let expected = Tensors::open(dir.join("expected.safetensors"));
    let model = Llama::load(&dir, format).expect("a packed checkpoint");
    let linears = linears(&model);
    assert_eq!(linears.len(), 7);
    for (name, weight) in linears {
        let (found, wanted) = (dequantised(weight), expected.f32s(&name));
        assert_eq!(found.len(), wanted.len(), "{name}");
        // bitsandbytes' CPU code rounds an int8 weight once more than its CUDA
        // code, which ours follows: an ulp of half precision.
        let ulp = |w: f32| f32::from(f16::EPSILON) * w.abs().max(f32::from(f16::MIN_POSITIVE));
        let differ = |(a, b): (&f32, &f32)| match format {
            Format::Int8 { .. } => (a - b).abs() > ulp(*b),
            _ => a.to_bits() != b.to_bits() && (*a != 0.0 || *b != 0.0),
        };
        let at = found.iter().zip(&wanted).position(differ);
        assert_eq!(at.map(|i| (i, found[i], wanted[i])), None, "{name}");
    }
    assert!(model.bytes().with_state > model.bytes().parameters);
    let mut engine = CpuEngine::new(model, 1, 4);
    let segment = Segment {
        slot: 0,
        start: 0,
        tokens: &[1, 2, 3],
    };
    let logits = engine.logits(&[segment]).expect("a forward pass");
    assert!(logits.iter().all(|l| l.is_finite()) && logits.iter().any(|l| *l != 0.0));
}

#[rstest]
#[case::nf4("nf4", Quantised::Bits4 { nf4: true, double_quant: true })]
#[case::fp4("fp4", Quantised::Bits4 { nf4: false, double_quant: false })]
#[case::int8("int8", Quantised::Int8 { threshold: 6.0 })]
fn the_configuration_says_how_weights_are_packed(#[case] name: &str, #[case] wanted: Quantised) {
    let config = Config::open(&golden("bnb-checkpoints").join(name)).expect("a configuration");
    assert_eq!(config.quantised, Some(wanted));
}

#[rstest]
#[case::fp16_from_nf4("nf4", Format::Fp16, "in FP16", "in NF4 already")]
#[case::fp4_from_nf4("nf4", FP4, "in FP4", "in NF4 already")]
#[case::plain_absmax_from_double(
    "nf4",
    Format::bnb4(Code4::Nf4, false),
    "no double quant",
    "in NF4"
)]
#[case::int8_from_fp4("fp4", INT8, "in INT8", "in FP4, no double quant already")]
#[case::another_threshold("int8", Format::Int8 { threshold: 0.0 }, "in INT8", "threshold 6")]
fn another_format_is_not_made_of_packed_weights(
    #[case] name: &str,
    #[case] format: Format,
    #[case] wanted: &str,
    #[case] found: &str,
) {
    let dir = golden("bnb-checkpoints").join(name);
    let said = [name, wanted, found, "run the experiment of that format"];
    assert_refuses(Llama::load(&dir, format), said);
}

const Q: &str = "model.layers.0.self_attn.q_proj";

/// Type, shape and bytes of a tensor.
type Part = (Dtype, Vec<usize>, Vec<u8>);
/// What a test makes of a tensor: none leaves it out.
type Change = fn(Part) -> Option<Part>;

fn gone(_: Part) -> Option<Part> {
    None
}

/// A copy of a packed checkpoint with one tensor changed.
fn changed(case: &str, name: &str, change: Change) -> TempDir {
    let from = golden("bnb-checkpoints").join(case);
    let dir = tempdir().expect("a temporary folder");
    fs::copy(from.join("config.json"), dir.path().join("config.json")).expect("a copy");
    let bytes = fs::read(from.join("model.safetensors")).expect("the weights");
    let file = SafeTensors::deserialize(&bytes).expect("a whole file");
    let mut seen = false;
    let mut tensors = Vec::new();
    for (tensor, view) in file.tensors() {
        let part = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let part = if tensor == name {
            seen = true;
            change(part)
        } else {
            Some(part)
        };
        tensors.extend(part.map(|part| (tensor, part)));
    }
    assert!(seen, "{name}");
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("bytes that fit the shape");
        (name, view)
    });
    let file = serialize(views, None).expect("tensors can be written");
    write(&dir.path().join("model.safetensors"), &file);
    dir
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The JSON of a quantisation state, changed.
fn state((_, _, bytes): Part, field: &str, value: Value) -> Option<Part> {
    let mut state: Value = serde_json::from_slice(&bytes).expect("JSON");
    state[field] = value;
    let text = state.to_string().into_bytes();
    Some((Dtype::U8, vec![text.len()], text))
}

#[rstest]
#[case::no_state(
    "nf4",
    NF4,
    ".weight.quant_state.bitsandbytes__nf4",
    gone,
    "no such tensor"
)]
#[case::a_state_that_is_no_json(
    "nf4", NF4, ".weight.quant_state.bitsandbytes__nf4",
    |_| Some((Dtype::U8, vec![3], b"{{{".to_vec())), "key must be a string"
)]
#[case::another_block(
    "nf4", NF4, ".weight.quant_state.bitsandbytes__nf4",
    |part| state(part, "blocksize", 128.into()), "blocks of 128"
)]
#[case::another_shape(
    "fp4", FP4, ".weight.quant_state.bitsandbytes__fp4",
    |part| state(part, "shape", vec![1, 1].into()), "shape [1, 1]"
)]
#[case::another_code(
    "fp4", FP4, ".weight.quant_state.bitsandbytes__fp4",
    |part| state(part, "quant_type", "nf4".into()), "nf4, blocks"
)]
#[case::no_offset(
    "nf4", NF4, ".weight.quant_state.bitsandbytes__nf4",
    |part| state(part, "nested_offset", Value::Null), "None"
)]
#[case::no_scales("fp4", FP4, ".weight.absmax", gone, "no such tensor")]
#[case::too_few_scales(
    "fp4", FP4, ".weight.absmax",
    |(d, s, b): Part| Some((d, vec![s[0] - 1], b[4..].to_vec())), "F32 of 63"
)]
#[case::a_scale_that_is_not_finite(
    "fp4", FP4, ".weight.absmax",
    |(d, s, b): Part| Some((d, s, [&f32::NAN.to_le_bytes()[..], &b[4..]].concat())), "NaN"
)]
#[case::another_table(
    "nf4", NF4, ".weight.quant_map",
    |(d, s, b): Part| Some((d, s, [&b[4..8], &b[4..]].concat())), "-0.69"
)]
#[case::another_nested_table(
    "nf4", NF4, ".weight.nested_quant_map",
    |(d, s, _)| Some((d, s, vec![0; 1024])), "0"
)]
#[case::too_few_codes(
    "nf4", NF4, ".weight",
    |(d, _, b): Part| Some((d, vec![b.len() - 1, 1], b[1..].to_vec())), "U8 of 2047"
)]
#[case::codes_that_are_not_packed(
    "nf4", NF4, ".weight",
    |_| Some((Dtype::F16, vec![64, 64], vec![0; 8192])), "F16 of 4096"
)]
#[case::no_row_scales("int8", INT8, ".SCB", gone, "no such tensor")]
#[case::another_layout(
    "int8", INT8, ".weight_format", |(d, s, _)| Some((d, s, vec![2])), "layout 2"
)]
#[case::turned_round(
    "int8", INT8, ".weight",
    |(d, s, b): Part| Some((d, vec![s[0] * 2, s[1] / 2], b)), "[128, 32]"
)]
fn a_packed_linear_that_does_not_fit_is_refused(
    #[case] name: &str,
    #[case] format: Format,
    #[case] tensor: &str,
    #[case] change: Change,
    #[case] found: &str,
) {
    let tensor = format!("{Q}{tensor}");
    let dir = changed(name, &tensor, change);
    assert_refuses(
        Llama::load(dir.path(), format),
        [&tensor, "", found, "check that"],
    );
}
