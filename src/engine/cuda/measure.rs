//! What a card is capable of, and how it is doing: copy bandwidth, matrix
//! product, clocks, temperature, power and energy.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{DevicePtr, result};
use half::f16;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};

use super::card::{Arguments, Card};
use super::kernels::{Kernels, QUANTISE};
use super::linear::stride;
use crate::error::{Error, Result};
use crate::record::{CardState, Gpu};
use crate::source::origin::random_scale;

/// Bytes that a copy reads, less on a card with little memory free.
const COPY_BYTES: u64 = 4 << 30;
/// Side of the square matrices of the product.
const SIDE: usize = 8192;
/// Repetitions that count, after two that do not.
const REPETITIONS: usize = 9;

/// A measurement that is made once a process and card.
type Once<T> = Mutex<Option<HashMap<usize, T>>>;

fn once<T: Copy>(kept: &Once<T>, ordinal: usize, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let kept = kept.get_or_insert_with(HashMap::new);
    if let Some(&value) = kept.get(&ordinal) {
        return Ok(value);
    }
    let value = measure()?;
    kept.insert(ordinal, value);
    Ok(value)
}

/// Median seconds of `run`, whose end `wait` waits for.
fn median_seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut seconds = Vec::with_capacity(REPETITIONS);
    for repetition in 0..REPETITIONS + 2 {
        let start = Instant::now();
        run()?;
        if repetition >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[REPETITIONS / 2])
}

/// Bytes read and written a second by a large copy within the card's memory,
/// the median of several.
pub fn copy_bytes_per_second(ordinal: usize) -> Result<f64> {
    static KEPT: Once<f64> = Mutex::new(None);
    once(&KEPT, ordinal, || {
        let card = Card::open(ordinal)?;
        let bytes = COPY_BYTES.min(card.free_bytes()? / 4) as usize;
        let from = card.zeros("a copy", bytes)?;
        let to = card.zeros("a copy", bytes)?;
        let seconds = median_seconds(|| {
            // SAFETY: both buffers hold that many bytes.
            unsafe {
                result::memcpy_dtod_async(to.at(0), from.at(0), bytes, card.stream().cu_stream())
            }
            .map_err(card.failed("copying within the card"))?;
            card.wait("copying within the card")
        })?;
        Ok(2.0 * bytes as f64 / seconds)
    })
}

/// Operations a second of a large FP16 matrix product on random numbers with
/// f32 accumulation by cuBLASLt; none where that library is not installed.
pub fn flops_per_second(ordinal: usize) -> Result<Option<f64>> {
    static KEPT: Once<Option<f64>> = Mutex::new(None);
    once(&KEPT, ordinal, || {
        // SAFETY: looks for the library by name and does nothing else.
        if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
            return Ok(None);
        }
        let card = Card::open(ordinal)?;
        let fill = Kernels::load(&card, &[QUANTISE])?.get("random_f16")?;
        let stream = card.stream().clone();
        let doing = "measuring a matrix product";
        let matrix = || -> Result<_> {
            let matrix = stream
                .alloc_zeros::<f16>(SIDE * SIDE)
                .map_err(card.failed(doing))?;
            let (address, _) = matrix.device_ptr(&stream);
            let arguments = Arguments::new()
                .with(address)
                .with((SIDE * SIDE) as i64)
                .with(address)
                .with(random_scale());
            stride(&card, &fill, SIDE * SIDE, arguments)?;
            Ok(matrix)
        };
        let (a, b, mut c) = (matrix()?, matrix()?, matrix()?);
        let library =
            CudaBlasLT::new(stream.clone()).map_err(|e| Error::engine(doing, format!("{e:?}")))?;
        let side = SIDE as u64;
        let config = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: side,
            n: side,
            k: side,
            alpha: 1.0,
            lda: SIDE as i64,
            ldb: SIDE as i64,
            beta: 0.0,
            ldc: SIDE as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        let seconds = median_seconds(|| {
            // SAFETY: square matrices of the sides that the configuration gives.
            unsafe { library.matmul(config, &a, &b, &mut c, None, None) }
                .map_err(|e| Error::engine(doing, format!("{e:?}")))?;
            card.wait(doing)
        })?;
        Ok(Some(2.0 * (SIDE as f64).powi(3) / seconds))
    })
}

/// What the card and its software call themselves.
pub fn gpu(ordinal: usize) -> Result<Gpu> {
    let card = Card::open(ordinal)?;
    let driver = nvml().ok().and_then(|nvml| nvml.sys_driver_version().ok());
    Ok(Gpu {
        name: card.name.clone(),
        driver: driver.unwrap_or_else(|| "unknown".to_owned()),
        cuda: card.cuda.clone(),
        memory_bytes: card.memory_bytes,
        compute_capability: format!("{}.{}", card.capability.0, card.capability.1),
    })
}

/// Clocks, temperature and power at this moment; none where NVML is not there
/// or does not say.
pub fn state(ordinal: usize) -> Result<Option<CardState>> {
    let uuid = Card::open(ordinal)?.uuid()?;
    let read = || {
        let nvml = nvml()?;
        let device = nvml.device_by_uuid(uuid.as_str())?;
        Ok::<_, nvml_wrapper::error::NvmlError>(CardState {
            sm_clock_mhz: device.clock_info(Clock::SM)?,
            memory_clock_mhz: device.clock_info(Clock::Memory)?,
            temperature_celsius: device.temperature(TemperatureSensor::Gpu)?,
            power_watts: f64::from(device.power_usage()?) / 1000.0,
        })
    };
    Ok(read().ok())
}

/// Joules that the card has used since its driver was loaded.
///
/// # Errors
/// Why that is not known.
pub fn joules(ordinal: usize) -> std::result::Result<f64, String> {
    let uuid = Card::open(ordinal)
        .and_then(|card| card.uuid())
        .map_err(|e| e.to_string())?;
    let read = || {
        let nvml = nvml()?;
        nvml.device_by_uuid(uuid.as_str())?
            .total_energy_consumption()
    };
    let millijoules = read().map_err(|e| format!("NVML gives no energy counter: {e}"))?;
    Ok(millijoules as f64 / 1000.0)
}

/// NVML under the name that a driver installs, or the one of a toolkit.
fn nvml() -> std::result::Result<Nvml, nvml_wrapper::error::NvmlError> {
    Nvml::builder()
        .lib_path("libnvidia-ml.so.1".as_ref())
        .init()
        .or_else(|_| Nvml::init())
}
