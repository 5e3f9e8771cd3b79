//! A checkpoint of random weights on disk is the model that `--weights random`
//! gives.

use std::fs;
use std::path::{Path, PathBuf};

use llama_quant::engine::{Device, Opening, Segment, open};
use llama_quant::experiment::EXPERIMENTS;
use llama_quant::measure::bench::Benched;
use llama_quant::measure::synth::synth;
use llama_quant::quant::{Compute, Format};
use llama_quant::record::Plan;
use llama_quant::source::hub::Located;
use llama_quant::source::origin::Weights;
use rstest::rstest;
use tempfile::tempdir;

fn shape(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/golden/llama")
        .join(name)
}

/// Logits after each of a few tokens.
fn logits(model: &Path, weights: Weights) -> Vec<f32> {
    let mut opened = open(Opening {
        device: Device::Cpu,
        model,
        weights,
        format: Format::Fp16,
        compute: Compute::F16,
        slots: 1,
        context: 8,
    })
    .expect("a model");
    let segment = Segment {
        slot: 0,
        start: 0,
        tokens: &[5, 3, 200, 77],
    };
    opened.decoder.logits(&[segment]).expect("a forward pass")
}

#[rstest]
fn the_files_hold_the_random_weights_of_their_seed(
    #[values("tied_gqa_llama3rope", "untied_mha_plain")] name: &str,
) {
    let out = tempdir().expect("a folder");
    let path = synth(&shape(name), 7, out.path()).expect("a checkpoint");
    assert_eq!(path, out.path().join("model.safetensors"));
    let random = |seed| logits(&shape(name), Weights::Random { seed });
    let stored = logits(out.path(), Weights::Checkpoint);
    assert_eq!(stored, random(7));
    assert_ne!(stored, random(8));
}

#[test]
fn a_checkpoint_without_a_tokenizer_is_a_model_whose_speed_can_be_measured() {
    let out = tempdir().expect("a folder");
    synth(&shape("untied_mha_plain"), 7, out.path()).expect("a checkpoint");
    assert!(!out.path().join("tokenizer.json").exists());
    let model = Located::local(out.path().to_owned());
    let benched = Benched::open(Device::Cpu.into(), &model, Weights::Checkpoint).expect("a model");
    let bench = benched.bench(&EXPERIMENTS[0], &Plan::short(Device::Cpu));
    let files = bench.expect("a measurement").head.setup.model.files;
    let names: Vec<&String> = files.keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_nothing_half_done() {
    let folder = tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, b"kept").expect("a file");
    let error = synth(&shape("untied_mha_plain"), 0, &file).expect_err("no folder");
    assert!(error.to_string().contains("file"), "{error}");
    assert_eq!(fs::read(&file).expect("the file"), b"kept");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}
