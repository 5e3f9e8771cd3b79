//! Pictures of what the records say, as SVG and PNG.
//!
//! Every picture is drawn once, as SVG, and the PNG is that SVG rasterised, so
//! the two are one picture. Neither reads a font of the system: text is measured
//! and rasterised with a font that is built in, and coordinates are whole
//! numbers, so that the same records give the same bytes on every machine.
//!
//! In reading order: `canvas` (size, font, colours, files), then one file for
//! each kind of picture: `rows` (a value with its interval a line), `scatter`
//! (F1 against size), `lines` (speed by batch), `bars` (memory, shares of a
//! limit, flips, items that differ).

pub mod canvas;
pub mod rows;
pub mod scatter;
pub mod lines;
pub mod bars;

pub use bars::{Differences, Flipped, Share, Stack, differences, flips, shares, stacks};
pub use canvas::{Picture, Shape, colour, png, shape};
pub use lines::{Curve, Curves, lines};
pub use rows::{Axis, Line, Mark, Rows, rows};
pub use scatter::{Point, scatter};
