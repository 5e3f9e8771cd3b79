//! Any bytes as a record: refused, or a record that can be judged.
#![no_main]

use std::cell::LazyCell;
use std::fs;

use libfuzzer_sys::fuzz_target;
use llama_quant::record::Record;
use llama_quant::verdict::judge::comparisons;
use llama_quant::verdict::stats::Resampling;
use tempfile::TempDir;

thread_local! {
    static FOLDER: LazyCell<TempDir> =
        LazyCell::new(|| tempfile::tempdir().expect("a temporary folder"));
}

fuzz_target!(|bytes: &[u8]| {
    FOLDER.with(|folder| {
        let path = folder.path().join("record.json");
        fs::write(&path, bytes).expect("a writable folder");
        if let Ok(record) = Record::open(&path) {
            drop(comparisons(&[record], Resampling::default()));
        }
    });
});
