//! The task, as pure text: the conversational questions of CoQA (Reddy, Chen
//! and Manning 2019, arXiv 1808.07042), the prompt that asks them, and the
//! scores of the answers. What enters is a file of stories and the text that a
//! model generated; no model, no tokenizer.
//!
//! A question becomes an F1 in three steps: [`Dataset::open`] reads the
//! stories, [`prompt()`] writes what the model continues, and [`score()`] holds
//! its [`prediction`] against the [`references`] of the turn.

pub mod dataset;
mod parquet;
pub mod prompt;
pub mod score;

pub use dataset::{Dataset, Story, Turn};
pub use prompt::{Dialogue, Item, STOP, Turns, gold_dialogue, items, prompt};
pub use score::{
    Score, Scoring, best_constant, ceiling, exact_match, f1, normalise, prediction, references,
    score,
};
