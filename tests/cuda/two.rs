//! Two GPUs of one machine give the same bits, and share an evaluation's work.
//! On a machine with one these tests fail and name the filter that leaves them
//! out, `--skip two_gpus`.

use llama_quant::coqa::Turns;
use llama_quant::engine::cuda::CudaEngine;
use llama_quant::engine::{Decoder, Device, Devices};
use llama_quant::experiment::BASELINE;
use llama_quant::measure::{Options, embedded};
use llama_quant::quant::{Code4, Format};
use llama_quant::source::hub::Located;
use rstest::rstest;

use crate::experiments;
use crate::forward::{engine, fixture};
use crate::gpu::{size, two_cards};
use crate::invariance::{continuations, logits, prompts};

const CONTEXT: usize = 192;

#[rstest]
#[ignore = "needs two NVIDIA GPUs"]
fn two_gpus_give_the_same_tokens_and_logits(
    #[values(Format::Fp16, Format::bnb4(Code4::Nf4, true), Format::Int8 { threshold: 6.0 })]
    format: Format,
    #[values(1, 7, 64)] batch: usize,
) {
    let (slots, steps) = size((64, 16), (8, 3));
    let batch = batch.min(slots);
    let (first, second) = two_cards();
    assert_eq!(
        (&first.name, first.capability),
        (&second.name, second.capability),
        "cards of two kinds may round differently; leave these tests out with \
         `-- --ignored --skip two_gpus`"
    );
    let of = |engine: &mut CudaEngine| {
        let prompts = prompts(slots, engine.vocab());
        let order: Vec<usize> = (0..slots).collect();
        let tokens = continuations(engine, &prompts, &order, batch, steps);
        let long = &prompts.concat()[..CONTEXT - 2];
        (tokens, logits(engine, batch - 1, long, &[batch]))
    };
    // Both are there at once, and one thread goes from one to the other.
    let mut engines = [&*first, &second].map(|c| engine(c, &fixture(), format, slots, CONTEXT));
    let [one, two] = engines.each_mut().map(of);
    assert!(one.0 == two.0, "{format:?}: tokens at batch {batch}");
    assert_eq!(one.1, two.1, "{format:?}: logits at batch {batch}");
    assert!(of(&mut engines[0]) == one, "{format:?}: the first again");
}

#[test]
#[ignore = "needs two NVIDIA GPUs"]
fn two_gpus_write_the_records_of_one() {
    let (first, second) = two_cards();
    let dir = tempfile::tempdir().expect("a folder");
    let names = [BASELINE, "bnb_8bit", "bnb_4bit_nf4"];
    let records = |devices: Devices| {
        let model = Located::local(embedded::model().expect("the tiny Llama"));
        let dataset = Located::local(embedded::dataset().expect("the data set"));
        let out = dir.path().join(devices.to_string());
        let options = Options {
            turns: Turns::All,
            limit: Some(size(40, 4)),
            ..experiments::options(model, dataset, devices, out)
        };
        experiments::records(&names, options)
    };
    let cards = [&*first, &second].map(|card| Device::Cuda(card.ordinal));
    let one = records(cards[0].into());
    let both = records(Devices::from(cards[0]).with(cards[1]));
    for (ours, wanted) in both.iter().zip(&one) {
        let name = &wanted.head.setup.experiment;
        assert_eq!(ours.head.key, wanted.head.key, "{name}");
        assert_eq!(ours.items, wanted.items, "{name}");
        assert_eq!(ours.forced, wanted.forced, "{name}");
    }
    assert_eq!(both.len(), names.len());
}
