//! What a model runs on, and what that is capable of.
//!
//! Every question about a device is one match here; each engine answers for
//! its own.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Instant;

use rayon::prelude::*;

use super::cuda::{Card, measure};
use crate::error::{Error, Result};
use crate::record::{CardState, Gpu};

/// A device with an engine for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda:N`, or `auto`: the best that there is.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (text, number) {
            ("auto", _) if Card::count() > 0 => Ok(Self::Cuda(0)),
            ("auto" | "cpu", _) => Ok(Self::Cpu),
            (_, Some(number)) => Ok(Self::Cuda(number)),
            _ => Err(Error::usage(
                "--device",
                "auto, cpu or cuda:N, or several GPUs as cuda:0,1 or cuda:all",
                format!("`{text}`"),
                "use one of these",
            )),
        }
    }
}

impl fmt::Display for Device {
    /// The name that is parsed, and that records carry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(number) => f.pad(&format!("cuda:{number}")),
        }
    }
}

impl Device {
    /// The engine that runs there: `cpu` or `cuda`. Results do not depend on
    /// which of several devices ran it.
    pub const fn engine(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// Whether it is a GPU.
    pub const fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// The GPU; none if it is not one.
    pub fn gpu(self) -> Result<Option<Gpu>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => measure::gpu(ordinal).map(Some),
        }
    }

    /// Bytes read and written a second by a copy much larger than any cache,
    /// within the memory of the device: the median of several, measured once a
    /// process.
    pub fn copy_bytes_per_second(self) -> Result<f64> {
        match self {
            Self::Cpu => {
                static MEASURED: OnceLock<f64> = OnceLock::new();
                Ok(*MEASURED.get_or_init(cpu_copy))
            }
            Self::Cuda(ordinal) => measure::copy_bytes_per_second(ordinal),
        }
    }

    /// Operations a second of a large FP16 matrix product; none on the CPU, or
    /// without a library to measure it with.
    pub fn flops_per_second(self) -> Result<Option<f64>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => measure::flops_per_second(ordinal),
        }
    }

    /// Clocks, temperature and power at this moment; none on the CPU.
    pub fn card(self) -> Result<Option<CardState>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => measure::state(ordinal),
        }
    }

    /// Joules that the device has used since some moment that stays the same
    /// within a process.
    ///
    /// # Errors
    /// The reason why that is not known, as a sentence for the record.
    pub fn joules(self) -> std::result::Result<f64, String> {
        match self {
            Self::Cpu => Err("the energy of a CPU is not measured".to_owned()),
            Self::Cuda(ordinal) => measure::joules(ordinal),
        }
    }
}

/// The devices of a run, at least one, each with a whole copy of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl From<Device> for Devices {
    fn from(device: Device) -> Self {
        Self(vec![device])
    }
}

impl FromStr for Devices {
    type Err = Error;

    /// A device, several GPUs as `cuda:0,1`, or all that there are as `cuda:all`.
    fn from_str(text: &str) -> Result<Self> {
        if text == "cuda:all" {
            return match Card::count() {
                0 => Err(Error::device(
                    text,
                    "at least one NVIDIA GPU and its driver",
                    "none",
                    "check that nvidia-smi lists the GPUs, or pass --device cpu",
                )),
                count => Ok(Self((0..count).map(Device::Cuda).collect())),
            };
        }
        let list = text.strip_prefix("cuda:").filter(|list| list.contains(','));
        let Some(list) = list else {
            return text.parse().map(Device::into);
        };
        let devices = list.split(',').map(|n| format!("cuda:{n}").parse());
        let devices: Vec<Device> = devices.collect::<Result<_>>()?;
        if let Some((_, twice)) = (1..)
            .zip(&devices)
            .find(|&(after, device)| devices[after..].contains(device))
        {
            let remedy = "name each GPU once";
            let wanted = "several GPUs as cuda:0,1";
            return Err(Error::usage(
                "--device",
                wanted,
                format!("{twice} twice"),
                remedy,
            ));
        }
        Ok(Self(devices))
    }
}

impl fmt::Display for Devices {
    /// The name that is parsed, and that records carry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first().fmt(f)?;
        for other in &self.0[1..] {
            if let Device::Cuda(number) = other {
                write!(f, ",{number}")?;
            } else {
                write!(f, ",{other}")?;
            }
        }
        Ok(())
    }
}

impl Devices {
    /// One device more.
    #[must_use]
    pub fn with(mut self, device: Device) -> Self {
        self.0.push(device);
        self
    }

    /// The one that is measured where one is enough.
    pub fn first(&self) -> Device {
        self.0[0]
    }

    pub fn all(&self) -> &[Device] {
        &self.0
    }
}

/// Bytes that the copy reads; it writes as many.
const COPY_BYTES: usize = 256 << 20;
/// Copies that count, after one that does not.
const COPIES: usize = 7;

/// The median speed of a copy by all cores, in bytes read and written a second.
fn cpu_copy() -> f64 {
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![2_u8; COPY_BYTES];
    let part = COPY_BYTES.div_ceil(rayon::current_num_threads());
    let mut seconds: Vec<f64> = (0..=COPIES)
        .map(|_| {
            let start = Instant::now();
            let parts = to.par_chunks_mut(part).zip(from.par_chunks(part));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
            // What nobody reads need not be copied.
            std::hint::black_box(&mut to);
            start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    (2 * COPY_BYTES) as f64 / seconds[COPIES / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_parsed_from_the_name_it_prints() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(12)] {
            let parsed: Device = device.to_string().parse().expect("its own name");
            assert_eq!(parsed, device);
        }
        for wrong in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:0 ", "CPU"] {
            let refusal = wrong.parse::<Device>().expect_err("no device").to_string();
            assert!(refusal.contains("auto, cpu or cuda:N"), "{refusal}");
            assert!(refusal.contains(&format!("`{wrong}`")), "{refusal}");
        }
    }

    #[test]
    fn several_devices_are_parsed_from_the_name_they_print() {
        for name in ["cpu", "cuda:0", "cuda:0,1", "cuda:3,0,12"] {
            let parsed: Devices = name.parse().expect("a name");
            assert_eq!(parsed.to_string(), name);
            assert_eq!(parsed.all().len(), name.split(',').count());
        }
        for (wrong, found) in [
            ("cuda:0,", "`cuda:`"),
            ("cuda:0,x", "`cuda:x`"),
            ("cuda:1,0,1", "cuda:1 twice"),
            ("cpu,cuda:0", "`cpu,cuda:0`"),
            ("cuda:ALL", "`cuda:ALL`"),
        ] {
            let refusal = wrong.parse::<Devices>().expect_err("no devices");
            assert!(refusal.to_string().contains(found), "{refusal}");
        }
    }
}
