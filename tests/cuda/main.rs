//! The CUDA engine on a real card, held against the CPU engine and the
//! reference values. Every test here needs an NVIDIA GPU and is ignored
//! without `--ignored`.

#[path = "../common/checkpoint.rs"]
mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/experiments.rs"]
mod experiments;
#[path = "../common/gpu.rs"]
mod gpu;
#[path = "../common/machine_code.rs"]
mod machine_code;
#[path = "../common/random.rs"]
mod random;

mod faults;
mod forward;
mod invariance;
mod products;
mod timeline;
mod two;
mod weights;
