//! What the records mean: statistics, comparisons, tables.
//!
//! May enter: [`crate::record`] and [`crate::experiment`]. Never an engine, a
//! GPU or weights: everything here is rebuilt from records on any laptop.

pub mod number;
pub mod stats;
pub mod speed;
pub mod judge;
pub mod table;
pub mod study;
pub mod figure;
pub mod report;
