//! Where and when a run takes place.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::engine::Devices;
use crate::error::{Error, Result};
use crate::record::Environment;
use crate::source::sha256;

/// The machine with `devices`, the first of which stands for all, and the sources, as they are now.
pub fn environment(devices: &Devices) -> Result<Environment> {
    let wanted = RefreshKind::nothing()
        .with_memory(MemoryRefreshKind::everything())
        .with_cpu(CpuRefreshKind::nothing());
    let system = System::new_with_specifics(wanted);
    let cpu = system
        .cpus()
        .first()
        .map(|cpu| cpu.brand().trim().to_owned());
    Ok(Environment {
        device: devices.to_string(),
        gpu: devices.first().gpu()?,
        cpu: cpu
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: system.total_memory(),
        os: System::long_os_version().unwrap_or_else(|| std::env::consts::OS.to_owned()),
        crate_version: env!("CARGO_PKG_VERSION").to_owned(),
        git_revision: git(&["rev-parse", "HEAD"]),
        git_clean: git(&["status", "--porcelain", "--", ".", ":!reports"]).map(|s| s.is_empty()),
        started: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
    })
}

/// What git says about the sources; none without git or outside a checkout.
fn git(arguments: &[&str]) -> Option<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git")
        .arg("-C")
        .arg(sources)
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// SHA-256 of the running program.
pub fn program() -> Result<String> {
    static PROGRAM: LazyLock<std::result::Result<String, String>> = LazyLock::new(|| {
        let path = std::env::current_exe().map_err(|e| e.to_string())?;
        sha256(&path).map_err(|e| e.to_string())
    });
    PROGRAM
        .clone()
        .map_err(|e| Error::engine("reading the program itself", e))
}

/// Today, UTC: `2026-01-31`.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}
