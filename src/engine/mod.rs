//! What runs: a Llama behind the one trait [`Decoder`], and greedy generation
//! on top of it.
//!
//! May enter: [`crate::source`] and [`crate::quant`]. Nothing here knows what
//! the tokens mean; the forward pass never names a format.

pub mod cpu;
pub mod decoder;
pub mod generate;
pub mod llama;
pub mod math;
mod stored;

pub use decoder::{Decoder, Segment};
