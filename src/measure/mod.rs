//! Runs an experiment and writes its record.
//!
//! May enter: [`crate::source`], [`crate::quant`], [`crate::engine`],
//! [`crate::coqa`]. Nothing here judges: no mean, no interval, no verdict.

pub mod bench;
pub mod embedded;
pub mod environment;
pub mod evaluate;
pub mod forced;
mod interrupt;
pub mod questions;
pub mod synth;

pub use evaluate::{Options, Shared, evaluate};
pub use interrupt::{check as check_interrupt, interrupt};
