//! The program as a user runs it.

use std::path::Path;
use std::process::Command;

/// The program in the folder `dir`.
pub fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama-quant"));
    on_the_cpu(&mut command);
    command.current_dir(dir);
    command
}

/// Runs `command` on the CPU also where there is a GPU: `auto` then finds none.
pub fn on_the_cpu(command: &mut Command) {
    command
        .env("CUDA_VISIBLE_DEVICES", "")
        .env_remove("RUST_LOG");
}
