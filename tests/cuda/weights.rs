//! Packed weights: the card's equal the host's to the bit.

use std::fs;

use half::f16;
use llama_quant::engine::cuda::engine::CudaEngine;
use llama_quant::engine::cuda::kernels::{Kernels, QUANTISE};
use llama_quant::engine::cuda::linear::{Linear, Packer, Tables};
use llama_quant::engine::llama::Llama;
use llama_quant::quant::bnb4::Absmax;
use llama_quant::quant::{Bnb4, Code4, Compute, Format, Int8, Weight};
use llama_quant::source::checkpoint::Checkpoint;
use llama_quant::source::config::Config;
use llama_quant::source::origin::Origin;
use rstest::rstest;
use safetensors::tensor::Dtype;

use crate::checkpoint::{self, Shape, Stored};
use crate::common::{Tensors, golden};
use crate::gpu::{Locked, card, size};
use crate::random::Random;

const FORMATS: [Format; 7] = [
    Format::Fp16,
    Format::bnb4(Code4::Nf4, true),
    Format::bnb4(Code4::Nf4, false),
    Format::bnb4(Code4::Fp4, true),
    Format::bnb4(Code4::Fp4, false),
    Format::Bnb4 {
        code: Code4::Nf4,
        block: 256,
        double_quant: true,
    },
    Format::Int8 { threshold: 6.0 },
];

/// Packs `matrices` on the card.
fn pack(
    card: &Locked,
    weights: &Origin,
    format: Format,
    matrices: &[(&str, usize)],
    columns: usize,
    interleaved: bool,
) -> Linear {
    let kernels = Kernels::load(card, &[QUANTISE]).expect("the kernels");
    let tables = Tables::new(card).expect("tables");
    let largest = matrices
        .iter()
        .map(|m| m.1 * columns)
        .max()
        .expect("a matrix");
    let packer = Packer::new(card, &kernels, &tables, weights, false, largest).expect("staging");
    let linear = packer
        .pack(format, Compute::F16, matrices, columns, interleaved)
        .expect("a packed weight");
    packer.finish().expect("numbers that FP16 holds");
    linear
}

/// Holds the parts of a weight on the card against the host's.
fn assert_equal(card: &Locked, linear: &Linear, format: Format, wanted: &[Weight]) {
    match format {
        Format::Fp16 => {
            let parts = linear.to_f16(card).expect("a download");
            for (ours, wanted) in parts.iter().zip(wanted) {
                let Weight::Fp16(wanted) = wanted else {
                    panic!("the host packs FP16")
                };
                assert!(*ours == wanted.values, "FP16 values differ");
            }
        }
        Format::Bnb4 { .. } => {
            let parts = linear.to_bnb4(card).expect("a download");
            assert_eq!(parts.len(), wanted.len());
            for (ours, wanted) in parts.iter().zip(wanted) {
                let Weight::Bnb4(wanted) = wanted else {
                    panic!("the host packs 4-bit")
                };
                assert_same_4bit(ours, wanted, format);
            }
        }
        Format::Int8 { .. } => {
            let parts = linear.to_int8(card).expect("a download");
            for (ours, wanted) in parts.iter().zip(wanted) {
                let Weight::Int8(wanted) = wanted else {
                    panic!("the host packs INT8")
                };
                assert_same_int8(ours, wanted);
            }
        }
    }
}

fn assert_same_4bit(ours: &Bnb4, wanted: &Bnb4, format: Format) {
    let differ = ours
        .packed
        .iter()
        .zip(&wanted.packed)
        .filter(|(a, b)| a != b);
    assert_eq!(differ.count(), 0, "{format}: bytes of codes differ");
    match (&ours.absmax, &wanted.absmax) {
        (Absmax::Plain(ours), Absmax::Plain(wanted)) => {
            assert!(ours == wanted, "{format}: absmax values differ");
        }
        (
            Absmax::Double {
                codes,
                nested_absmax,
                offset,
            },
            Absmax::Double {
                codes: wanted_codes,
                nested_absmax: wanted_nested,
                offset: wanted_offset,
            },
        ) => {
            assert_eq!(
                offset.to_bits(),
                wanted_offset.to_bits(),
                "{format}: offset"
            );
            assert!(
                nested_absmax == wanted_nested,
                "{format}: nested absmax values differ"
            );
            assert!(
                codes == wanted_codes,
                "{format}: codes of absmax values differ"
            );
        }
        _ => panic!("{format}: another kind of absmax values"),
    }
}

fn assert_same_int8(ours: &Int8, wanted: &Int8) {
    assert!(ours.row_absmax == wanted.row_absmax, "row scales differ");
    let differ = ours.codes.iter().zip(&wanted.codes).filter(|(a, b)| a != b);
    assert_eq!(differ.count(), 0, "INT8 codes differ");
}

#[rstest]
#[case::one_tile(&[("a", 16)], 64, false)]
#[case::ragged_rows(&[("a", 41)], 192, false)]
#[case::queries_keys_values(
    &[("q", size(128, 32)), ("k", size(64, 16)), ("v", size(64, 16))],
    256,
    false
)]
#[case::gate_and_up_in_turns(&[("gate", size(704, 88)), ("up", size(704, 88))], 256, true)]
#[case::many_nested_blocks(&[("a", size(512, 96))], 2048, false)]
#[ignore = "needs an NVIDIA GPU"]
fn weights_packed_on_the_card_equal_the_hosts_to_the_bit(
    #[case] matrices: &[(&str, usize)],
    #[case] columns: usize,
    #[case] interleaved: bool,
) {
    let card = card();
    let weights = Origin::Random { seed: 11 };
    for format in FORMATS {
        let linear = pack(&card, &weights, format, matrices, columns, interleaved);
        let host: Vec<Weight> = matrices
            .iter()
            .map(|&(name, rows)| {
                let values = weights.f16(name, &[rows, columns]).expect("numbers");
                Weight::pack(format, values, rows, columns).expect("a format")
            })
            .collect();
        assert_equal(&card, &linear, format, &host);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn weights_of_the_reference_are_packed_as_the_host_packs_them() {
    let card = card();
    let folder = tempfile::tempdir().expect("a folder");
    let file = golden("bnb").join("bnb.safetensors");
    fs::copy(&file, folder.path().join("model.safetensors")).expect("a copy");
    let weights = Origin::Stored(Checkpoint::open(folder.path()).expect("a checkpoint"));
    let reference = Tensors::open(file);
    let mut compared = 0;
    for name in reference.names() {
        if !name.ends_with(".input") {
            continue;
        }
        let shape = reference.shape(&name);
        let (rows, columns) = (shape[0], shape[1]);
        if columns % 64 != 0 {
            continue; // The engine refuses such widths; the host serves them.
        }
        for format in FORMATS {
            let linear = pack(&card, &weights, format, &[(&name, rows)], columns, false);
            let values: Vec<f16> = weights.f16(&name, &shape).expect("numbers");
            let host = Weight::pack(format, values, rows, columns).expect("a format");
            assert_equal(&card, &linear, format, &[host]);
            compared += 1;
        }
    }
    assert!(compared >= 5 * FORMATS.len(), "only {compared} compared");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn more_than_2_to_the_31_weights_are_packed_whole() {
    let card = card();
    let weights = Origin::Random { seed: 3 };
    let (rows, columns) = (131_072 + 16, 16_384);
    assert!(rows * columns > 1 << 31);
    let matrix = [("large", rows)];
    let plain = pack(
        &card,
        &weights,
        Format::bnb4(Code4::Nf4, false),
        &matrix,
        columns,
        false,
    );
    let plain = &plain.to_bnb4(&card).expect("a download")[0];
    let Absmax::Plain(absmax) = &plain.absmax else {
        panic!("no double quantisation was asked for")
    };
    // The first and the last rows, made and packed on the host.
    let start = llama_quant::source::origin::random_start(3, "large").expect("not a norm");
    for row in [0, 1, rows / 2, rows - 2, rows - 1] {
        let at = row * columns;
        let values: Vec<f32> = (at..at + columns)
            .map(|i| llama_quant::source::origin::random(start, i as u64).to_f32())
            .collect();
        let wanted = Bnb4::quantise(Code4::Nf4, 64, false, &values, 1, columns);
        assert!(
            plain.packed[at / 2..(at + columns) / 2] == wanted.packed,
            "codes of row {row}"
        );
        let Absmax::Plain(wanted) = wanted.absmax else {
            unreachable!()
        };
        assert!(
            absmax[at / 64..(at + columns) / 64] == wanted,
            "absmax values of row {row}"
        );
    }
    let double = pack(
        &card,
        &weights,
        Format::bnb4(Code4::Nf4, true),
        &matrix,
        columns,
        false,
    );
    let double = &double.to_bnb4(&card).expect("a download")[0];
    assert!(
        double.absmax == Absmax::double(absmax),
        "double quantisation differs"
    );
    assert!(double.packed == plain.packed, "codes differ");
}

#[rstest]
#[case::nf4("nf4", Format::bnb4(Code4::Nf4, true))]
#[case::fp4("fp4", Format::bnb4(Code4::Fp4, false))]
#[case::int8("int8", Format::Int8 { threshold: 6.0 })]
#[ignore = "needs an NVIDIA GPU"]
fn checkpoints_packed_by_bitsandbytes_reach_the_card_as_they_are(
    #[case] name: &str,
    #[case] format: Format,
) {
    let card = card();
    let dir = golden("bnb-checkpoints").join(name);
    let config = Config::open(&dir).expect("a configuration");
    assert!(config.quantised.is_some());
    let model = Llama::load(&dir, format).expect("a checkpoint");
    let layer = &model.layers[0];
    let weights = Origin::Stored(Checkpoint::open(&dir).expect("a checkpoint"));
    let kernels = Kernels::load(&card, &[QUANTISE]).expect("the kernels");
    let tables = Tables::new(&card).expect("tables");
    let elements = config.hidden * config.intermediate.max(config.vocab);
    let packer = Packer::new(&card, &kernels, &tables, &weights, true, elements).expect("staging");
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let of = |part: &str| format!("model.layers.0.{part}.weight");
    let names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(of);
    let matrices = [(names[0].as_str(), q), (&names[1], kv), (&names[2], kv)];
    let linear = packer
        .pack(format, Compute::F16, &matrices, config.hidden, false)
        .expect("a packed weight");
    let wanted = [&layer.q, &layer.k, &layer.v].map(Weight::clone);
    assert_equal(&card, &linear, format, &wanted);
    let names = ["mlp.gate_proj", "mlp.up_proj"].map(of);
    let rows = config.intermediate;
    let matrices = [(names[0].as_str(), rows), (&names[1], rows)];
    let linear = packer
        .pack(format, Compute::F16, &matrices, config.hidden, true)
        .expect("a packed weight");
    assert_equal(
        &card,
        &linear,
        format,
        &[layer.gate.clone(), layer.up.clone()],
    );
}

#[rstest]
#[case::fp16(Format::Fp16)]
#[case::nf4(Format::bnb4(Code4::Nf4, true))]
#[ignore = "needs an NVIDIA GPU"]
fn a_number_that_fp16_cannot_hold_is_named_as_the_cpu_engine_names_it(#[case] format: Format) {
    let card = card();
    let shape = Shape {
        vocab: 64,
        hidden: 128,
        intermediate: 192,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
    };
    let mut stored = checkpoint::Checkpoint::random(shape, Dtype::BF16, true);
    let name = "model.layers.1.mlp.down_proj.weight";
    stored.tensor(name).set(5, 1e5);
    let dir = tempfile::tempdir().expect("a folder");
    stored.write(dir.path());
    let config = Config::open(dir.path()).expect("a configuration");
    let weights = Origin::Stored(Checkpoint::open(dir.path()).expect("a checkpoint"));
    let ours = CudaEngine::new(&card, config, &weights, format, Compute::F16, (1, 64));
    let said = ours.err().expect("a refusal").to_string();
    assert!(said.contains(name), "{said}");
    let wanted = Llama::load(dir.path(), format).err().expect("a refusal");
    assert_eq!(said, wanted.to_string());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_tensor_of_many_pieces_reaches_the_card_whole() {
    let card = card();
    // 16 MiB a piece; the last one is not full.
    let (rows, columns) = (size(9001, 4505), 4096);
    let tensor = Stored::random(Dtype::F16, &[rows, columns], &mut Random::new(5));
    let stored = checkpoint::Checkpoint {
        config: serde_json::Value::Null,
        tensors: [("w".to_owned(), tensor)].into(),
    };
    let dir = tempfile::tempdir().expect("a folder");
    checkpoint::write(&dir.path().join("model.safetensors"), &stored.file());
    let weights = Origin::Stored(Checkpoint::open(dir.path()).expect("a checkpoint"));
    let linear = pack(
        &card,
        &weights,
        Format::Fp16,
        &[("w", rows)],
        columns,
        false,
    );
    let wanted = weights.f16("w", &[rows, columns]).expect("numbers");
    let parts = linear.to_f16(&card).expect("a download");
    assert!(parts == [wanted], "FP16 values differ");
}
