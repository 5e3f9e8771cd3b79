//! The GPU that tests share: one test at a time, across processes too.

#![allow(dead_code)] // Not every test file needs all of it.

use std::fs::File;
use std::ops::Deref;

use llama_quant::engine::cuda::Card;
pub use llama_quant::engine::cuda::kernels::sanitized;

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

/// `full`, or `less` where a tool that slows kernels down a thousandfold watches.
pub fn size<T>(full: T, less: T) -> T {
    if sanitized() { less } else { full }
}

/// Number of the card that `LLAMA_QUANT_DEVICE` names.
pub fn ordinal() -> usize {
    std::env::var("LLAMA_QUANT_DEVICE")
        .ok()
        .and_then(|name| name.strip_prefix("cuda:")?.parse().ok())
        .unwrap_or(0)
}

/// The card of [`card`] and another one of the same machine.
///
/// # Panics
/// Where there is one GPU; the message names the filter.
pub fn two_cards() -> (Locked, Card) {
    let first = card();
    let other = usize::from(first.ordinal == 0);
    let count = Card::count();
    assert!(
        count > 1,
        "this test needs two NVIDIA GPUs, and there is {count}; leave these tests out with \
         `-- --ignored --skip two_gpus`"
    );
    let other = Card::open(other).unwrap_or_else(|e| panic!("the other GPU: {e}"));
    (first, other)
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
