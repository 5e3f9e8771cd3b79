//! From a checkpoint to an engine that runs it.

use std::path::Path;
use std::thread;
use std::time::Instant;

use super::AnyDecoder;
use super::cpu::CpuEngine;
use super::cuda::{Card, CudaEngine};
use super::device::{Device, Devices};
use super::llama::Llama;
use super::memory::{Need, available_bytes};
use super::stored::without_baseline;
use crate::error::Result;
use crate::quant::{Bytes, Compute, Format};
use crate::source::config::Config;
use crate::source::origin::{Origin, Weights};

/// An engine, ready to run.
pub struct Opened {
    pub decoder: Box<AnyDecoder>,
    /// Reading, packing and, where there is one, the way to the device.
    pub load_seconds: f64,
    /// Bytes of the weights as they are held, norms counted in FP16.
    pub size: Bytes,
}

/// What is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    pub device: Device,
    /// The checkpoint folder; random weights need only its `config.json`.
    pub model: &'a Path,
    pub weights: Weights,
    /// How the linears of the layers are stored.
    pub format: Format,
    /// What weights are rounded to before they are multiplied.
    pub compute: Compute,
    /// Sequences held at once.
    pub slots: usize,
    /// Tokens that a sequence can have at most.
    pub context: usize,
}

/// Refuses a checkpoint that was packed before it was saved: it runs in its own
/// format alone, and there is no FP16 to compare that with.
///
/// # Errors
/// If it is packed, or has no usable `config.json`.
pub fn check_baseline(dir: &Path) -> Result<()> {
    match Config::open(dir)?.quantised {
        Some(stored) => Err(without_baseline(dir, stored)),
        None => Ok(()),
    }
}

/// Opens the same on each of `devices` in place of the opening's own, side by
/// side.
///
/// # Errors
/// As [`open`], of the first device that fails.
pub fn open_each(devices: &Devices, opening: Opening<'_>) -> Result<Vec<Opened>> {
    let on = |device| open(Opening { device, ..opening });
    thread::scope(|scope| {
        let others = devices.all()[1..].iter();
        let others: Vec<_> = others.map(|&d| scope.spawn(move || on(d))).collect();
        let mut opened = vec![on(devices.first())];
        let panicked = |panic| std::panic::resume_unwind(panic);
        opened.extend(
            others
                .into_iter()
                .map(|o| o.join().unwrap_or_else(panicked)),
        );
        opened.into_iter().collect()
    })
}

/// Loads a model in its format onto a device.
///
/// # Errors
/// If the checkpoint does not fit, or the device has no engine or no room.
pub fn open(opening: Opening<'_>) -> Result<Opened> {
    let Opening {
        device,
        model,
        weights,
        format,
        compute,
        slots,
        context,
    } = opening;
    let start = Instant::now();
    match device {
        Device::Cpu => {
            let config = Config::open(model)?;
            if let Some(available) = available_bytes() {
                Need::of(&config, format, slots, context).check(format, available)?;
            }
            let model = Llama::build(config, &Origin::open(model, weights)?, format, compute)?;
            let size = model.bytes();
            let decoder = Box::new(CpuEngine::new(model, slots, context));
            Ok(Opened {
                decoder,
                load_seconds: start.elapsed().as_secs_f64(),
                size,
            })
        }
        Device::Cuda(ordinal) => {
            let card = Card::open(ordinal)?;
            let config = Config::open(model)?;
            let origin = Origin::open(model, weights)?;
            let wanted = (slots, context);
            let engine = CudaEngine::new(&card, config, &origin, format, compute, wanted)?;
            let size = engine.model().bytes();
            Ok(Opened {
                decoder: Box::new(engine),
                load_seconds: start.elapsed().as_secs_f64(),
                size,
            })
        }
    }
}
