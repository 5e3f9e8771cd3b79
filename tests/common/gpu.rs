//! The GPU that tests share: one test at a time, across processes too.

#![allow(dead_code)] // Not every test file needs all of it.

use std::fs::File;
use std::ops::Deref;

use llama_quant::engine::cuda::Card;

/// A card that no other test uses while this value lives.
pub struct Locked {
    card: Card,
    _lock: File,
}

impl Deref for Locked {
    type Target = Card;

    fn deref(&self) -> &Card {
        &self.card
    }
}

/// Number of the card that `LLAMA_QUANT_DEVICE` names.
pub fn ordinal() -> usize {
    std::env::var("LLAMA_QUANT_DEVICE")
        .ok()
        .and_then(|name| name.strip_prefix("cuda:")?.parse().ok())
        .unwrap_or(0)
}

/// Waits for the lock and opens `LLAMA_QUANT_DEVICE`, `cuda:0` by default.
/// Fails where there is no GPU: a test that needs one never passes without.
pub fn card() -> Locked {
    let path = std::env::temp_dir().join("llama-quant-gpu.lock");
    let lock = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    lock.lock().expect("a lock on the GPU");
    let card =
        Card::open(ordinal()).unwrap_or_else(|e| panic!("this test needs an NVIDIA GPU: {e}"));
    Locked { card, _lock: lock }
}
