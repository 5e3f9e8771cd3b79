//! Where the time of a decode step goes, for whoever makes it faster.

use llama_quant::engine::cuda::CudaEngine;
use llama_quant::engine::{Decoder, Segment};
use llama_quant::quant::{Code4, Compute, Format};
use llama_quant::source::origin::Origin;
use rstest::rstest;

use crate::forward::llama_3_2_1b;
use crate::gpu::{card, size};

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[rstest]
#[ignore = "needs an NVIDIA GPU"]
fn a_step_of_one_sequence_goes_through_its_phases_in_order(
    #[values(Format::Fp16, Format::bnb4(Code4::Nf4, true), Format::Int8 { threshold: 6.0 })]
    format: Format,
    #[values(1, 4)] batch: usize,
) {
    let card = card();
    let config = llama_3_2_1b(2);
    let weights = Origin::Random { seed: 1 };
    let mut engine = CudaEngine::new(&card, config, &weights, format, Compute::F16, (4, 256))
        .expect("an engine");
    let prompt: Vec<u32> = (0..size(128, 16)).collect();
    let segments = (0..batch).map(|slot| Segment {
        slot,
        start: 0,
        tokens: &prompt,
    });
    let next = engine
        .prefill(&segments.collect::<Vec<_>>())
        .expect("a prefill");
    let rows: Vec<(usize, u32)> = next.into_iter().enumerate().collect();
    let mut timelines = Vec::new();
    for _ in 0..size(9, 2) {
        if let Some(timeline) = engine.timeline(&rows).expect("a step") {
            timelines.push(timeline);
        }
    }
    if card.capability < (9, 0) {
        assert!(timelines.is_empty(), "one kernel needs Hopper or newer");
        return;
    }
    let Some(last) = timelines.pop() else {
        // INT8 of several tokens does not fit into shared memory.
        assert!(
            batch > 1,
            "{format:?}: a step of one sequence is one kernel"
        );
        return;
    };
    let phases = last.phases;
    let blocks: Vec<&[[u64; 4]]> = last.stamps.chunks(phases).collect();
    let begun = blocks
        .iter()
        .map(|block| block[0][0])
        .min()
        .expect("blocks");
    let ended = blocks
        .iter()
        .map(|block| block[phases - 1][3])
        .max()
        .expect("blocks");
    println!(
        "{format:?}, {batch} sequences: {:.1} us",
        (ended - begun) as f64 / 1e3
    );
    for (which, name) in ["qkv", "o", "gate and up", "down"].iter().enumerate() {
        // Without the first layer, where everything starts.
        let of = |from: usize, to: usize| {
            let each = blocks.iter().flat_map(|block| {
                let there = (4 + which..phases - 1).step_by(4).map(move |p| block[p]);
                there.filter(|s| s[1] > 0).map(|s| {
                    assert!(
                        s[0] <= s[1] && s[1] <= s[2] && s[2] <= s[3],
                        "{name}: {s:?}"
                    );
                    (s[to] - s[from]) as f64 / 1e3
                })
            });
            median(each.collect())
        };
        println!(
            "{name:>12}: input {:.2} us, products {:.2}, hand-over {:.2}",
            of(0, 1),
            of(1, 2),
            of(2, 3)
        );
    }
    let head = |from: usize, to: usize| {
        let each = blocks
            .iter()
            .map(|b| (b[phases - 1][to] - b[phases - 1][from]) as f64 / 1e3);
        median(each.collect())
    };
    println!(
        "        head: input {:.2} us, products {:.2}, hand-over {:.2}",
        head(0, 1),
        head(1, 2),
        head(2, 3)
    );
}
