//! The same Llama on an NVIDIA GPU: packed weights, our own kernels, a decode
//! step that is one captured graph. CUDA is found at run time; this code is in
//! every build and a machine without a GPU only sees an error when it asks.
//!
//! [`card`] is the device and its memory, [`kernels`] compiles and keeps what
//! runs there, [`linear`] packs weights, [`engine`] is the [`Decoder`]. Steps of
//! a few tokens are one kernel, [`persistent`].
//! All `unsafe` of the crate but one memory map lives in this folder.
//!
//! [`Decoder`]: crate::engine::Decoder
#![allow(unsafe_code)]

pub mod card;
pub mod engine;
pub mod kernels;
mod launched;
pub mod linear;
pub mod measure;
pub mod model;
pub mod persistent;
pub mod product;
mod staging;

pub use card::Card;
pub use engine::CudaEngine;
