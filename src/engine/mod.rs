//! What runs: a Llama behind the one trait [`Decoder`], and greedy generation
//! on top of it.
//!
//! May enter: [`crate::source`], [`crate::quant`], and from [`crate::record`]
//! what an engine says of itself and its device. Nothing here knows what
//! the tokens mean; the forward pass never names a format.

pub mod decoder;
pub mod generate;
pub mod open;
pub mod device;
pub mod llama;
pub mod cpu;
pub mod cuda;
pub mod math;
pub mod memory;
mod stored;

pub use decoder::{AnyDecoder, Decoder, Segment};
pub use device::{Device, Devices};
pub use open::{Opened, Opening, check_baseline, open, open_each};
