//! Whether a model has room in the memory of the host, asked before it loads:
//! a host that runs out of memory ends the process without a word.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::error::{Error, Result};
use crate::quant::Format;
use crate::quant::size::{MIB, model_bytes};
use crate::source::config::Config;

/// Bytes that the CPU engine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Packed, quantisation state included.
    pub weights: u64,
    /// While it loads: the largest tensor before it is packed.
    pub staging: u64,
    /// Keys and values of one whole sequence.
    pub sequence: u64,
    /// Sequences held at once.
    pub slots: usize,
}

impl Need {
    /// Of a model in `format` with `slots` sequences of `context` tokens.
    pub fn of(config: &Config, format: Format, slots: usize, context: usize) -> Self {
        let numbers = |&(_, rows, columns): &(&str, usize, usize)| rows as u64 * columns as u64;
        let linears = config.layer_linears();
        let largest = linears.iter().map(numbers).max().unwrap_or_default();
        // FP16 is kept as it is read, and what was packed before arrives packed.
        let is_packed = format != Format::Fp16 && config.quantised.is_none();
        let token = 2 * (config.layers * config.kv_heads * config.head_dim * size_of::<f32>());
        Self {
            weights: model_bytes(config, format).with_state,
            // As FP16, and as the f32 that are quantised.
            staging: if is_packed { largest * (2 + 4) } else { 0 },
            sequence: (token as u64).saturating_mul(context as u64),
            slots,
        }
    }

    /// Refuses what cannot run in `available` bytes, and warns of what may not:
    /// pages of the cache take memory only when they are used.
    ///
    /// # Errors
    /// If weights and one sequence have no room.
    pub fn check(&self, format: Format, available: u64) -> Result<()> {
        let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / MIB);
        let least = self.weights.saturating_add(self.staging.max(self.sequence));
        if least > available {
            return Err(Error::device(
                format!("cpu: memory for a model in {format}"),
                format!(
                    "{}, of them {} of weights, {} to pack one and {} for a sequence",
                    mib(least),
                    mib(self.weights),
                    mib(self.staging),
                    mib(self.sequence)
                ),
                format!("{} available", mib(available)),
                "close other programs, pass --experiment with one of a smaller format, or \
                 --device cuda:0 where there is a GPU",
            ));
        }
        let cache = self.sequence.saturating_mul(self.slots as u64);
        let most = self.weights.saturating_add(cache);
        if most > available {
            tracing::warn!(
                "{} of weights in {format} and the caches of {} sequences can grow to {}, and {} \
                 are available: the process ends without a word if they do; `compare --limit N` \
                 with fewer stories holds fewer sequences",
                mib(self.weights),
                self.slots,
                mib(most),
                mib(available)
            );
        }
        Ok(())
    }
}

/// Bytes that this process could still take, swap included, in the limits of
/// its control group; none where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(wanted);
    if system.total_memory() == 0 || system.available_memory() == 0 {
        return None;
    }
    let free = system.available_memory().saturating_add(system.free_swap());
    let limits = system.cgroup_limits();
    // What is cached of files counts as used there, and is given up on demand.
    let within = limits.map(|l| {
        let rest = l.total_memory.saturating_sub(l.rss);
        rest.saturating_add(l.free_swap)
    });
    Some(within.map_or(free, |within| within.min(free)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Need = Need {
        weights: 900 << 20,
        staging: 50 << 20,
        sequence: 100 << 20,
        slots: 16,
    };

    #[test]
    fn weights_and_one_sequence_must_have_room_and_no_more() {
        assert!(NEED.check(Format::Fp16, 1000 << 20).is_ok());
        let refusal = NEED.check(Format::Fp16, (1000 << 20) - 1);
        let refusal = refusal.expect_err("a byte is missing").to_string();
        for part in [
            "device cpu: memory for a model in FP16",
            "expected 1000 MiB, of them 900 MiB of weights, 50 MiB to pack one and 100 MiB",
            "found 1000 MiB available",
            "--experiment",
            "--device cuda:0",
        ] {
            assert!(refusal.contains(part), "{part} in {refusal}");
        }
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let endless = Need {
            weights: u64::MAX - 1,
            ..NEED
        };
        assert!(endless.check(Format::Fp16, u64::MAX - 1).is_err());
    }

    #[test]
    fn this_machine_has_memory() {
        // Any that runs this test does, and none has an exbibyte.
        let bytes = available_bytes().expect("the system says");
        assert!((1 << 20..1 << 60).contains(&bytes), "{bytes}");
    }
}
