//! A device, its memory, and launches on it.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, DriverError, result};

use super::launched::{BLOCKING, Launched, Names, blamed, is_set, loses_device};
use crate::error::{Error, Result};
use crate::quant::size::MIB;

/// The oldest architecture whose tensor cores and copies the kernels use.
const OLDEST: (i32, i32) = (8, 0);
/// The architecture that has kernels of its own.
pub(super) const HOPPER: (i32, i32) = (9, 0);

/// An NVIDIA GPU with a context and one stream that all work goes through.
#[derive(Clone)]
pub struct Card {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    allocated: Arc<Allocated>,
    launched: Arc<Launched>,
    /// Whether every launch is waited for, so that an error names one kernel.
    blocking: bool,
    /// Whether a kernel may start before the one ahead of it has ended.
    dependent_launches: bool,
    pub ordinal: usize,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    pub multiprocessors: usize,
    /// Of the card, not what is free.
    pub memory_bytes: u64,
    /// The newest CUDA that the driver runs, such as `13.0`.
    pub cuda: String,
}

/// Bytes that this process holds on the card through [`Buffer`]s.
#[derive(Default)]
struct Allocated {
    now: AtomicU64,
    peak: AtomicU64,
}

/// Device memory, freed when dropped.
pub struct Buffer {
    address: u64,
    bytes: usize,
    card: Card,
}

/// Page-locked host memory that the device reads and writes by itself.
pub struct Pinned<T: Plain> {
    address: *mut T,
    length: usize,
    card: Card,
}

/// A compiled function on one card.
#[derive(Clone)]
pub struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) name: Arc<str>,
    /// The loaded program that the function belongs to.
    pub(super) _program: Arc<dyn Send + Sync>,
}

// SAFETY: a function handle may be used from any thread that has bound the
// context, and every launch binds it.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}
// SAFETY: the memory belongs to the value and has no thread of its own.
unsafe impl<T: Plain + Send> Send for Pinned<T> {}
// SAFETY: a graph may be used from any thread that has bound the context, one
// at a time, and every use binds it.
unsafe impl Send for Graph {}

/// Launches that were captured and are repeated as one.
pub struct Graph {
    graph: CudaGraph,
    kernels: Names,
    card: Card,
}

/// Types that mean the same bytes on host and device, with no gap and no
/// invalid bit pattern.
///
/// # Safety
/// The type is `repr(C)` or primitive, `Copy`, and any bytes are a value of it.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: primitives without invalid bit patterns.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}
// SAFETY: a transparent u16.
unsafe impl Plain for half::f16 {}
// SAFETY: an array of them has no gap either.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// How the copy engine of Hopper walks over rows of memory; mirrors the driver's
/// `CUtensorMap`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TensorMap([u64; 16]);

// SAFETY: integers without gaps.
unsafe impl Plain for TensorMap {}

/// Arguments of one launch, copied bytewise.
#[derive(Default)]
pub struct Arguments {
    data: Vec<u64>,
    at: Vec<usize>,
}

impl Arguments {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value as the kernel declares it.
    #[must_use]
    pub fn with<T: Plain>(mut self, value: T) -> Self {
        let words = size_of::<T>().div_ceil(8);
        let at = self.data.len();
        self.at.push(at);
        self.data.resize(at + words, 0);
        // SAFETY: the words just added hold at least the value's bytes.
        unsafe { std::ptr::write_unaligned(self.data.as_mut_ptr().add(at).cast::<T>(), value) };
        self
    }
}

impl Card {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// If there is no driver, no such device, or it is too old.
    pub fn open(ordinal: usize) -> Result<Self> {
        let thing = || format!("cuda:{ordinal}");
        // SAFETY: looks for the library by name and does nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::device(
                thing(),
                "the NVIDIA driver (libcuda.so.1) in the loader's path",
                "none",
                "install the driver, or pass --device cpu",
            ));
        }
        let refused = |e: DriverError| {
            Error::device(
                thing(),
                "a working NVIDIA driver and a GPU",
                described(e),
                if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                    "close other programs on the GPU, pass --device cuda:N for another one, or \
                     --device cpu"
                } else {
                    "check that nvidia-smi lists the GPU, or pass --device cpu"
                },
            )
        };
        result::init().map_err(refused)?;
        let devices = CudaContext::device_count().map_err(refused)? as usize;
        if ordinal >= devices {
            return Err(Error::device(
                thing(),
                match devices {
                    0 => "at least one GPU".to_owned(),
                    1 => "cuda:0, the only GPU".to_owned(),
                    n => format!("cuda:0 to cuda:{}", n - 1),
                },
                format!("{devices} GPUs"),
                "name a GPU that nvidia-smi lists, or pass --device cpu",
            ));
        }
        let context = CudaContext::new(ordinal).map_err(refused)?;
        // SAFETY: all work of this crate goes through one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(refused)?;
        let name = context.name().map_err(refused)?;
        let capability = context.compute_capability().map_err(refused)?;
        if capability < OLDEST {
            return Err(Error::device(
                thing(),
                format!("compute capability {}.{} or newer", OLDEST.0, OLDEST.1),
                format!("{name} with {}.{}", capability.0, capability.1),
                "use an Ampere or newer GPU, or pass --device cpu",
            ));
        }
        let multiprocessors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(refused)? as usize;
        let mut version = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(refused)?;
        Ok(Self {
            memory_bytes: context.total_mem().map_err(refused)? as u64,
            dependent_launches: capability >= (9, 0) && version >= 12_030,
            cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
            allocated: Arc::default(),
            launched: Arc::default(),
            blocking: is_set(BLOCKING),
            context,
            stream,
            ordinal,
            name,
            capability,
            multiprocessors,
        })
    }

    /// How many GPUs there are, none without a driver; no context is made.
    pub fn count() -> usize {
        // SAFETY: looks for the library by name and does nothing else.
        if !unsafe { sys::is_culib_present() } || result::init().is_err() {
            return 0;
        }
        CudaContext::device_count().map_or(0, |n| n as usize)
    }

    /// The name under which other libraries know the card.
    pub fn uuid(&self) -> Result<String> {
        let uuid = self
            .context
            .uuid()
            .map_err(self.failed("asking for the card's name"))?;
        let hex: Vec<String> = uuid
            .bytes
            .iter()
            .map(|b| format!("{:02x}", *b as u8))
            .collect();
        let part = |range: std::ops::Range<usize>| hex[range].concat();
        let parts = [
            part(0..4),
            part(4..6),
            part(6..8),
            part(8..10),
            part(10..16),
        ];
        Ok(format!("GPU-{}", parts.join("-")))
    }

    /// Bytes free on the card.
    pub fn free_bytes(&self) -> Result<u64> {
        let (free, _) = self
            .context
            .mem_get_info()
            .map_err(self.failed("asking for free memory"))?;
        Ok(free as u64)
    }

    /// Bytes held through [`Buffer`]s of this card now, and at most so far.
    pub fn allocated_bytes(&self) -> (u64, u64) {
        let Allocated { now, peak } = &*self.allocated;
        (now.load(Ordering::Relaxed), peak.load(Ordering::Relaxed))
    }

    /// Device memory of `bytes`, filled with zeros. `what` is named if there is
    /// too little.
    pub fn zeros(&self, what: &str, bytes: usize) -> Result<Buffer> {
        self.bind()?;
        // SAFETY: a plain allocation; 0 bytes are not asked for.
        let address = unsafe { result::malloc_sync(bytes.max(16)) }.map_err(|e| {
            if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                self.no_room(what, format!("{:.0} MiB", bytes as f64 / MIB))
            } else {
                self.failed("allocating device memory")(e)
            }
        })?;
        let now = self
            .allocated
            .now
            .fetch_add(bytes as u64, Ordering::Relaxed)
            + bytes as u64;
        self.allocated.peak.fetch_max(now, Ordering::Relaxed);
        let buffer = Buffer {
            address,
            bytes,
            card: self.clone(),
        };
        // SAFETY: the allocation holds that many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(self.failed("clearing device memory"))?;
        Ok(buffer)
    }

    /// Device memory with a copy of `values`.
    pub fn copied<T: Plain>(&self, what: &str, values: &[T]) -> Result<Buffer> {
        let buffer = self.zeros(what, size_of_val(values))?;
        self.upload(&buffer, 0, values)?;
        Ok(buffer)
    }

    /// Copies `values` to byte `offset` of `to`; the host may reuse them when
    /// this returns; page-locked ones only when the stream has come to it.
    pub fn upload<T: Plain>(&self, to: &Buffer, offset: usize, values: &[T]) -> Result<()> {
        assert!(offset + size_of_val(values) <= to.bytes, "an upload fits");
        self.bind()?;
        // SAFETY: checked above; pageable memory is staged before the call returns.
        unsafe {
            result::memcpy_htod_async(to.address + offset as u64, values, self.stream.cu_stream())
        }
        .map_err(self.failed("copying to the device"))
    }

    /// Copies `count` values from byte `offset` of `from`, after all work so far.
    pub fn download<T: Plain>(&self, from: &Buffer, offset: usize, count: usize) -> Result<Vec<T>> {
        assert!(
            offset + count * size_of::<T>() <= from.bytes,
            "a download fits"
        );
        self.bind()?;
        let mut values: Vec<T> = Vec::with_capacity(count);
        // SAFETY: any bytes are a value of T, and the copy fills all of them
        // before they are read.
        unsafe {
            let room = std::slice::from_raw_parts_mut(values.as_mut_ptr(), count);
            result::memcpy_dtoh_async(room, from.address + offset as u64, self.stream.cu_stream())
                .map_err(self.failed("copying from the device"))?;
            self.wait("copying from the device")?;
            values.set_len(count);
        }
        Ok(values)
    }

    /// Page-locked memory of `length` zeros.
    pub fn pinned<T: Plain>(&self, length: usize) -> Result<Pinned<T>> {
        self.bind()?;
        let bytes = (length * size_of::<T>()).max(16);
        // SAFETY: a plain allocation, cleared before use.
        let address = unsafe {
            let address = result::malloc_host(bytes, 0).map_err(|e| {
                if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                    return Error::device(
                        "page-locked memory of the host",
                        format!("{bytes} bytes"),
                        described(e),
                        "close other programs, or raise the limit of locked memory",
                    );
                }
                self.failed("allocating page-locked memory")(e)
            })?;
            std::ptr::write_bytes(address.cast::<u8>(), 0, bytes);
            address.cast::<T>()
        };
        Ok(Pinned {
            address,
            length,
            card: self.clone(),
        })
    }

    /// A map of `rows` rows of `bytes` bytes each at `address`, one after the
    /// other, of which a copy takes `copied_rows` rows of `copied_bytes`; what
    /// lies outside is zeros. All bytes in multiples of 16.
    pub fn tensor_map(
        &self,
        address: u64,
        (rows, bytes): (usize, usize),
        (copied_rows, copied_bytes): (usize, usize),
    ) -> Result<TensorMap> {
        use sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_INT64;
        use sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        use sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        use sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        use sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE;
        // In numbers of 8 bytes, since a copy takes at most 256 of a row.
        let (size, part) = ([bytes as u64 / 8, rows as u64], copied_bytes as u32 / 8);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have two entries, strides one less.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                CU_TENSOR_MAP_DATA_TYPE_INT64,
                2,
                address as *mut c_void,
                size.as_ptr(),
                [bytes as u64].as_ptr(),
                [part, copied_rows as u32].as_ptr(),
                [1, 1].as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_NONE,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(self.failed("describing a matrix to the copy engine"))?;
        Ok(TensorMap(map.opaque))
    }

    /// Launches `kernel` on `grid` blocks with `shared` bytes of dynamic shared
    /// memory. What the kernel itself does wrong shows in a later call.
    pub fn launch(
        &self,
        kernel: &Kernel,
        grid: (u32, u32, u32),
        threads: u32,
        shared: u32,
        arguments: Arguments,
    ) -> Result<()> {
        self.launch_clusters(kernel, grid, 1, threads, shared, arguments)
    }

    /// The same with `cluster` blocks that follow each other in the last
    /// dimension of the grid as one cluster.
    pub fn launch_clusters(
        &self,
        kernel: &Kernel,
        grid: (u32, u32, u32),
        cluster: u32,
        threads: u32,
        shared: u32,
        arguments: Arguments,
    ) -> Result<()> {
        let mut attributes = Vec::with_capacity(2);
        if self.dependent_launches {
            attributes.push(sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue {
                    programmaticStreamSerializationAllowed: 1,
                },
            });
        }
        if cluster > 1 {
            attributes.push(sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                        x: 1,
                        y: 1,
                        z: cluster,
                    },
                },
            });
        }
        self.launch_as(kernel, grid, threads, shared, arguments, &mut attributes)
    }

    /// As [`Card::launch`], with all blocks running at once; refused if they do
    /// not fit.
    pub fn launch_together(
        &self,
        kernel: &Kernel,
        blocks: u32,
        threads: u32,
        shared: u32,
        arguments: Arguments,
    ) -> Result<()> {
        let mut together = [sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        }];
        let grid = (blocks, 1, 1);
        self.launch_as(kernel, grid, threads, shared, arguments, &mut together)
    }

    fn launch_as(
        &self,
        kernel: &Kernel,
        grid: (u32, u32, u32),
        threads: u32,
        shared: u32,
        arguments: Arguments,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> Result<()> {
        self.bind()?;
        let Arguments { mut data, at } = arguments;
        let base = data.as_mut_ptr();
        // SAFETY: every offset lies in `data`.
        let mut pointers: Vec<*mut c_void> = at
            .iter()
            .map(|&at| unsafe { base.add(at) }.cast())
            .collect();
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: grid.2,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the caller passes what the kernel declares; every kernel waits
        // for the one before it before it touches what that one wrote.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                kernel.function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        launched.result().map_err(|e| {
            let doing = format!(
                "launching kernel {} on {} ({}, {}, {} blocks of {threads} threads)",
                kernel.name, self.name, grid.0, grid.1, grid.2
            );
            self.failed(&doing)(e)
        })?;
        self.launched.kernel(&kernel.name);
        if self.blocking {
            self.wait("waiting for a launch")?;
        }
        Ok(())
    }

    /// Waits until all work so far is done. An error names `doing` and the
    /// kernels launched since the last wait.
    pub fn wait(&self, doing: &str) -> Result<()> {
        self.stream.synchronize().map_err(self.failed(doing))?;
        self.launched.waited();
        Ok(())
    }

    /// Whether every launch is waited for: nothing can be captured then.
    pub fn is_blocking(&self) -> bool {
        self.blocking
    }

    /// Captures what `launches` would launch. Not where [`Card::is_blocking`].
    pub fn capture(&self, what: &str, launches: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let doing = format!("capturing {what}");
        self.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(self.failed(&doing))?;
        let (captured, kernels) = self.launched.captured(launches);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        // Ended also after an error, so that the stream can go on.
        let graph = self.stream.end_capture(flags).map_err(self.failed(&doing));
        captured?;
        let graph = graph?.ok_or_else(|| Error::engine(&doing, "an empty graph"))?;
        Ok(Graph {
            graph,
            kernels,
            card: self.clone(),
        })
    }

    /// Turns a driver's error into one that says what was being done: of memory
    /// that ran out, of a device that is lost and the kernels it can be of, or
    /// of anything else.
    pub(super) fn failed<'a>(&'a self, doing: &'a str) -> impl Fn(DriverError) -> Error + 'a {
        move |e| {
            if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return self.no_room(doing, "what the driver needs for it");
            }
            let said = described(e);
            if !loses_device(e.0) {
                return Error::engine(doing, said);
            }
            self.launched.lose();
            Error::lost(doing, blamed(&self.launched.names(), &said))
        }
    }

    fn no_room(&self, what: &str, wanted: impl Into<String>) -> Error {
        let free = self.context.mem_get_info().map_or(0, |(free, _)| free);
        Error::device(
            format!("{}: memory for {what}", self.name),
            wanted,
            format!("{:.0} MiB free", free as f64 / MIB),
            "close other programs on the GPU, pass --experiment with one of a smaller format, \
             --device cuda:N for another GPU, or --device cpu",
        )
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context
            .bind_to_thread()
            .map_err(self.failed("binding the device's context"))
    }

    /// Lets blocks of `function` use `bytes` of shared memory. All functions
    /// split the cache of a multiprocessor in the same way, since blocks of two
    /// kernels share one only if they agree about that.
    pub(super) fn allow_shared(&self, function: sys::CUfunction, bytes: u32) -> Result<()> {
        use CUfunction_attribute as Attribute;
        for (which, value) in [
            (
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                bytes as i32,
            ),
            (
                Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                100,
            ),
        ] {
            // SAFETY: a valid function of this context.
            unsafe { sys::cuFuncSetAttribute(function, which, value) }
                .result()
                .map_err(self.failed("raising the limit of shared memory"))?;
        }
        Ok(())
    }

    /// Whether a block can have more than 100 KiB of shared memory: the cards
    /// for data centres can.
    pub fn has_large_shared(&self) -> bool {
        matches!(self.capability, (8, 0) | (9, _) | (10, _))
    }

    /// Shared memory that one block can have at most, in bytes.
    pub(super) fn most_shared(&self) -> Result<u32> {
        let which = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let bytes = self
            .context
            .attribute(which)
            .map_err(self.failed("asking for the limit of shared memory"))?;
        Ok(bytes as u32)
    }
}

impl Buffer {
    /// Address on the device, for arguments.
    pub fn at(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes, "an address inside its buffer");
        self.address + offset as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.card
            .allocated
            .now
            .fetch_sub(self.bytes as u64, Ordering::Relaxed);
        // Of a lost device nothing can be freed; the end of the process does that.
        if !self.card.launched.is_lost() && self.card.bind().is_ok() {
            // SAFETY: allocated by `zeros`, freed once; freeing waits for the device.
            let freed = unsafe { result::free_sync(self.address) };
            if let Err(e) = freed.map_err(self.card.failed("freeing device memory")) {
                tracing::warn!("{e}");
            }
        }
    }
}

impl Graph {
    /// Launches what was captured; see [`Card::launch`].
    pub fn launch(&self, doing: &str) -> Result<()> {
        self.graph.launch().map_err(self.card.failed(doing))?;
        self.card.launched.graph(&self.kernels);
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // The handles are destroyed next, on whatever thread this is.
        let _ = self.card.bind();
    }
}

impl<T: Plain> Pinned<T> {
    /// What the memory holds now. The device may be writing; wait first.
    pub fn values(&self) -> &[T] {
        // SAFETY: allocated with this length and cleared; any bytes are values.
        unsafe { std::slice::from_raw_parts(self.address, self.length) }
    }

    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.length) }
    }

    /// The same address serves the device.
    pub fn address(&self) -> u64 {
        self.address as u64
    }
}

impl<T: Plain> Drop for Pinned<T> {
    fn drop(&mut self) {
        if !self.card.launched.is_lost() && self.card.bind().is_ok() {
            // SAFETY: allocated by `pinned`, freed once.
            let freed = unsafe { result::free_host(self.address.cast()) };
            if let Err(e) = freed.map_err(self.card.failed("freeing page-locked memory")) {
                tracing::warn!("{e}");
            }
        }
    }
}

/// What the driver says about an error.
fn described(e: DriverError) -> String {
    let name = e
        .error_name()
        .ok()
        .and_then(|s| s.to_str().ok().map(str::to_owned));
    let text = e
        .error_string()
        .ok()
        .and_then(|s| s.to_str().ok().map(str::to_owned));
    match (name, text) {
        (Some(name), Some(text)) => format!("{name} ({text})"),
        _ => format!("{e:?}"),
    }
}

/// Where compiled kernels are kept: `LLAMA_QUANT_CACHE`, the user's cache
/// folder, or the folder for temporary files.
pub(super) fn cache_folder() -> std::path::PathBuf {
    let named = std::env::var_os("LLAMA_QUANT_CACHE").map(std::path::PathBuf::from);
    let user = || {
        let xdg = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
        let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".cache"));
        Some(xdg.or_else(home)?.join("llama-quant"))
    };
    named
        .or_else(user)
        .unwrap_or_else(|| std::env::temp_dir().join("llama-quant"))
}
