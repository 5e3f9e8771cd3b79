//! Several devices, each with a copy of the model, give the records of one. The
//! same on GPUs is in `tests/cuda/two.rs`.

#[path = "common/experiments.rs"]
mod experiments;

use std::path::Path;

use llama_quant::coqa::Turns;
use llama_quant::engine::{Device, Devices};
use llama_quant::experiment::{BASELINE, Experiment};
use llama_quant::measure::bench::Benched;
use llama_quant::measure::{Options, embedded};
use llama_quant::record::{Bench, Plan, Record, Weights};
use llama_quant::source::hub::Located;

fn cpus(count: usize) -> Devices {
    (1..count).fold(Device::Cpu.into(), |cpus: Devices, _| {
        cpus.with(Device::Cpu)
    })
}

/// Records of every turn of ten stories.
fn records(devices: Devices, out: &Path) -> Vec<Record> {
    let model = Located::local(embedded::model().expect("the tiny Llama"));
    let dataset = Located::local(embedded::dataset().expect("the data set"));
    let options = Options {
        turns: Turns::All,
        limit: Some(10),
        ..experiments::options(model, dataset, devices, out.to_path_buf())
    };
    experiments::records(&[BASELINE, "bnb_4bit_nf4"], options)
}

#[test]
fn records_are_those_of_one_device() {
    let dir = tempfile::tempdir().expect("a folder");
    let wanted = records(cpus(1), &dir.path().join("1"));
    for count in [2, 11] {
        let found = records(cpus(count), &dir.path().join(count.to_string()));
        for (ours, wanted) in found.iter().zip(&wanted) {
            assert_eq!(ours.head.key, wanted.head.key);
            assert_eq!(ours.items, wanted.items, "{count} devices");
            assert_eq!(ours.forced, wanted.forced, "{count} devices");
            let devices = &ours.head.environment.device;
            assert_eq!(devices.split(',').count(), count, "{devices}");
        }
        assert_eq!(found.len(), wanted.len());
    }
}

#[test]
fn a_bench_on_several_devices_lies_beside_that_on_one() {
    let shape = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shape = Located::local(shape.join("fixtures/golden/llama/tied_gqa_llama3rope"));
    let experiment = Experiment::named("bnb_4bit_nf4").expect("an experiment");
    let plan = Plan {
        prefill_tokens: vec![40],
        batches: vec![1, 2],
        cached_tokens: 4,
        repetitions: 2,
        steps: 3,
        energy_seconds: 0.0,
        documents: 6,
        stories: 5,
    };
    let dir = tempfile::tempdir().expect("a folder");
    let [one, two] = [1, 2].map(|count| {
        let weights = Weights::Random { seed: 0 };
        let benched = Benched::open(cpus(count), &shape, weights).expect("a model");
        let bench = benched.bench(&experiment, &plan).expect("a bench");
        let path = bench.write(dir.path()).expect("a record");
        assert_eq!(Bench::open(&path).expect("a bench"), bench);
        assert_eq!(bench.head.setup.devices, count);
        let text = std::fs::read_to_string(&path).expect("the record");
        // One device is what records said nothing of before there were several.
        assert_eq!(text.contains("\"devices\": 2"), count == 2);
        assert_eq!(text.contains("\"devices\""), count == 2);
        let documents = bench.speed.documents.expect("asked for");
        (path, documents, bench.speed.turns.expect("asked for"))
    });
    assert_ne!(one.0, two.0);
    assert_eq!(one.1.prompt_tokens, two.1.prompt_tokens);
    assert_eq!(one.2.count, two.2.count);
}
