//! A checkpoint is quantised while it loads: never more than one tensor is held
//! unpacked. One test alone, since the peak is that of the whole process.

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[path = "common/random.rs"]
mod random;

use checkpoint::{Checkpoint, Shape};
use llama_quant::engine::Decoder;
use llama_quant::engine::cpu::CpuEngine;
use llama_quant::engine::llama::Llama;
use llama_quant::engine::memory::Need;
use llama_quant::quant::size::MIB;
use llama_quant::quant::{Code4, Format};
use peak_alloc::PeakAlloc;
use safetensors::tensor::Dtype;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// 18.9 million parameters, most of them in linears.
const SHAPE: Shape = Shape {
    vocab: 1000,
    hidden: 512,
    intermediate: 1536,
    layers: 6,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
};

/// For what is small and not counted: the header, norms in f32, the absmax
/// values of one tensor before they are quantised, the threads' queues.
const SLACK: usize = 512 << 10;

#[test]
fn loading_takes_the_packed_model_and_one_tensor_unpacked() {
    for dtype in [Dtype::F16, Dtype::F32] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Checkpoint::random(SHAPE, dtype, true).write(dir.path());
        // The threads live on; they start before anything is counted.
        rayon::join(|| (), || ());
        for format in [
            Format::Fp16,
            Format::bnb4(Code4::Nf4, true),
            Format::bnb4(Code4::Fp4, false),
            Format::Int8 { threshold: 6.0 },
        ] {
            let before = HEAP.current_usage();
            HEAP.reset_peak_usage();
            let model = Llama::load(dir.path(), format).expect("a checkpoint");
            let peak = HEAP.peak_usage() - before;
            let held = HEAP.current_usage() - before;

            let packed = model.bytes().with_state as usize;
            let largest = SHAPE.hidden * SHAPE.intermediate;
            let unpacked = match format {
                // What is read is what is kept.
                Format::Fp16 => 0,
                // As FP16, and as the f32 that are quantised.
                _ => largest * (2 + 4),
            };
            let mib = |bytes: usize| bytes as f64 / MIB;
            println!(
                "{dtype:?} to {format}: packed {:.2} MiB, held {:.2}, peak {:.2}, bound {:.2}",
                mib(packed),
                mib(held),
                mib(peak),
                mib(packed + unpacked + SLACK),
            );
            assert!(held >= packed, "what is held is counted");
            assert!(held <= packed + SLACK, "{format} holds {held} bytes");
            assert!(
                peak <= packed + unpacked + SLACK,
                "{format} takes {peak} bytes"
            );

            // What is asked of the host's memory before a model loads is that.
            let need = Need::of(&model.config, format, 3, 128);
            assert_eq!(
                (need.weights, need.staging),
                (packed as u64, unpacked as u64)
            );
            let memory = CpuEngine::new(model, 3, 128).memory().expect("counted");
            assert_eq!(memory.cache_bytes, 3 * need.sequence);
        }
    }
}
