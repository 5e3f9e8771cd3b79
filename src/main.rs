//! The command line: one match, no logic.
#![deny(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli::start_logging();
    let outcome = match cli.command.unwrap_or_default() {
        cli::Command::Compare(arguments) => cli::compare(&arguments),
        cli::Command::Bench(arguments) => cli::bench(&arguments),
        cli::Command::Report(arguments) => cli::report(&arguments),
        cli::Command::Fetch(arguments) => cli::fetch(&arguments),
        cli::Command::Synth(arguments) => cli::synth(&arguments),
        cli::Command::Size(arguments) => cli::size(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            match error {
                // As a shell reports a program that SIGINT ended.
                llama_quant::Error::Interrupted { .. } => ExitCode::from(130),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
