//! What ran, and what it read.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::quant::Compute;
use crate::quant::size::MIB;
use crate::record::{Environment, Gpu, Model};

/// One property of the machines that ran the records of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    pub name: &'static str,
    /// Every value that occurs.
    pub values: String,
}

/// What was read, with its SHA-256.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checksum {
    pub file: String,
    pub sha256: String,
}

/// What the heads of records say of where they were written: each an
/// environment, a compute type, and the SHA-256 of the program.
pub(super) fn machine<'a>(
    heads: impl Iterator<Item = (&'a Environment, Compute, &'a String)>,
) -> Vec<Fact> {
    let heads: Vec<_> = heads.collect();
    let joined = |name, values: BTreeSet<String>| Fact {
        name,
        values: values.into_iter().collect::<Vec<_>>().join("; "),
    };
    let fact = |name, value: &dyn Fn(&Environment) -> String| {
        joined(name, heads.iter().map(|head| value(head.0)).collect())
    };
    let of_gpu = |name, value: &dyn Fn(&Gpu) -> String| {
        let gpus = heads.iter().filter_map(|head| head.0.gpu.as_ref());
        joined(name, gpus.map(value).collect())
    };
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1024.0 * MIB));
    let unknown = || "unknown".to_owned();
    let mut facts = vec![
        fact("device", &|e| e.device.clone()),
        of_gpu("GPU", &|g| g.name.clone()),
        of_gpu("memory of the GPU", &|g| gib(g.memory_bytes)),
        of_gpu("compute capability", &|g| g.compute_capability.clone()),
        of_gpu("driver", &|g| g.driver.clone()),
        of_gpu("CUDA", &|g| g.cuda.clone()),
        fact("CPU", &|e| e.cpu.clone()),
        fact("cores", &|e| e.cores.to_string()),
        fact("memory", &|e| gib(e.memory_bytes)),
        fact("operating system", &|e| e.os.clone()),
        fact("version of the program", &|e| e.crate_version.clone()),
        fact("revision of the source", &|e| {
            e.git_revision.clone().unwrap_or_else(unknown)
        }),
        fact("no uncommitted changes", &|e| match e.git_clean {
            Some(true) => "yes".to_owned(),
            Some(false) => "no, there were some".to_owned(),
            None => unknown(),
        }),
        joined("compute type", {
            let types = heads.iter().map(|head| format!("{:?}", head.1));
            types.map(|name| name.to_lowercase()).collect()
        }),
        joined("program (SHA-256)", {
            heads.iter().map(|head| head.2.clone()).collect()
        }),
    ];
    facts.retain(|fact| !fact.values.is_empty());
    facts
}

pub(super) fn checksums(model: &Model) -> Vec<Checksum> {
    let files = model.files.iter();
    let files = files.map(|(name, sha256)| Checksum {
        file: format!("{}/{name}", model.name),
        sha256: sha256.clone(),
    });
    files.collect()
}
