//! Which kernels an error of the device may come from. What a kernel does wrong
//! shows in a later call to the driver, so the card remembers what it has
//! launched since it last waited.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::CUresult;

/// With a value other than 0 every launch is waited for, and no step is
/// captured, so that an error names one kernel.
pub(super) const BLOCKING: &str = "LLAMA_QUANT_LAUNCH_BLOCKING";

/// Whether the environment has a value other than 0 under `name`.
pub(super) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0")
}

/// Names of kernels, each once.
pub(super) type Names = Arc<[Arc<str>]>;

/// What a card has launched.
#[derive(Default)]
pub(super) struct Launched {
    /// Since the last wait that succeeded; a launch comes in every few
    /// microseconds, so names are shared, not copied.
    since: Mutex<Vec<Launch>>,
    lost: AtomicBool,
}

#[derive(Clone)]
enum Launch {
    Kernel(Arc<str>),
    Graph(Names),
}

impl Launched {
    fn since(&self) -> MutexGuard<'_, Vec<Launch>> {
        // A list of names is whole after any panic.
        self.since
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn kernel(&self, name: &Arc<str>) {
        let mut since = self.since();
        let known = |launch: &Launch| matches!(launch, Launch::Kernel(n) if Arc::ptr_eq(n, name));
        // Kept short where thousands of launches pass between two waits.
        if !since.iter().any(known) {
            since.push(Launch::Kernel(name.clone()));
        }
    }

    pub(super) fn graph(&self, kernels: &Names) {
        let mut since = self.since();
        let known = |launch: &Launch| matches!(launch, Launch::Graph(k) if Arc::ptr_eq(k, kernels));
        if !since.iter().any(known) {
            since.push(Launch::Graph(kernels.clone()));
        }
    }

    /// All that was launched has ended well.
    pub(super) fn waited(&self) {
        self.since().clear();
    }

    /// The result of `capture`, and the kernels that it captured, which are not
    /// launched by that.
    pub(super) fn captured<T>(&self, capture: impl FnOnce() -> T) -> (T, Names) {
        let before = std::mem::take(&mut *self.since());
        let result = capture();
        let captured = std::mem::replace(&mut *self.since(), before);
        (result, names(&captured).into())
    }

    /// Names of the kernels since the last wait, in the order of their first
    /// launch.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        names(&self.since())
    }

    /// Remembers that the device is lost to this process.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

fn names(launches: &[Launch]) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for launch in launches {
        let launched = match launch {
            Launch::Kernel(name) => std::slice::from_ref(name),
            Launch::Graph(kernels) => kernels,
        };
        for name in launched {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names
}

/// What the driver said, and of which of `kernels` it can be.
pub(super) fn blamed(kernels: &[Arc<str>], said: &str) -> String {
    match kernels {
        [] => said.to_owned(),
        [one] => format!("kernel {one} failed: {said}"),
        several => format!(
            "one of the kernels {} failed: {said}; with {BLOCKING}=1 the message names the one",
            several.join(", ")
        ),
    }
}

/// Whether the driver refuses a process all further work after this error, by
/// the documentation of `CUresult`: the process "must be terminated and
/// relaunched". A card that has fallen off reports one of these or
/// `CUDA_ERROR_UNKNOWN`, of which nothing better is known.
pub(super) fn loses_device(error: CUresult) -> bool {
    use CUresult::*;
    matches!(
        error,
        CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn an_error_may_come_from_what_was_launched_since_the_last_wait() {
        let launched = Launched::default();
        let [embed, norm, step] = ["embed", "rms_norm", "step_f16_add"].map(kernel);
        let said = || blamed(&launched.names(), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(said(), "CUDA_ERROR_ILLEGAL_ADDRESS");
        launched.kernel(&embed);
        launched.kernel(&embed);
        assert_eq!(said(), "kernel embed failed: CUDA_ERROR_ILLEGAL_ADDRESS");
        // What is captured is not launched before its graph is.
        let (result, graph) = launched.captured(|| {
            launched.kernel(&norm);
            launched.kernel(&step);
            launched.kernel(&norm);
            7
        });
        assert_eq!(
            (result, graph.to_vec()),
            (7, vec![norm.clone(), step.clone()])
        );
        assert_eq!(launched.names(), std::slice::from_ref(&embed));
        launched.graph(&graph);
        launched.graph(&graph);
        launched.kernel(&kernel("rms_norm"));
        assert_eq!(
            said(),
            "one of the kernels embed, rms_norm, step_f16_add failed: CUDA_ERROR_ILLEGAL_ADDRESS; \
             with LLAMA_QUANT_LAUNCH_BLOCKING=1 the message names the one"
        );
        launched.waited();
        launched.graph(&graph);
        assert_eq!(launched.names(), [norm, step]);
    }

    #[test]
    fn what_is_remembered_does_not_grow_with_the_number_of_launches() {
        let launched = Launched::default();
        let graph: Names = vec![kernel("choose")].into();
        let kernels = ["embed", "rms_norm"].map(kernel);
        for _ in 0..1000 {
            kernels.iter().for_each(|name| launched.kernel(name));
            launched.graph(&graph);
        }
        assert_eq!(launched.since().len(), 3);
    }

    #[test]
    fn memory_that_runs_out_or_a_wrong_call_does_not_lose_the_device() {
        use CUresult::*;
        for error in [
            CUDA_ERROR_OUT_OF_MEMORY,
            CUDA_ERROR_INVALID_VALUE,
            CUDA_ERROR_INVALID_IMAGE,
            CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            CUDA_ERROR_NO_DEVICE,
            CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        ] {
            assert!(!loses_device(error), "{error:?}");
        }
        for error in [
            CUDA_ERROR_ILLEGAL_ADDRESS,
            CUDA_ERROR_LAUNCH_FAILED,
            CUDA_ERROR_ECC_UNCORRECTABLE,
            CUDA_ERROR_ASSERT,
            CUDA_ERROR_UNKNOWN,
        ] {
            assert!(loses_device(error), "{error:?}");
        }
    }
}
