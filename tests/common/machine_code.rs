//! What a compiled program of kernels says of itself.

use std::collections::BTreeSet;

/// Kernels that a source declares, as the compiled file names them.
pub fn kernels(code: &[u8]) -> BTreeSet<String> {
    // Each kernel has a section of its own in the file, named after it.
    let text = String::from_utf8_lossy(code);
    text.split('\0')
        .filter_map(|name| name.strip_prefix(".text."))
        .map(str::to_owned)
        .collect()
}
