//! Experiments one after the other: one that fails leaves the others their run,
//! in a new process where it took the device with it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use llama_quant::experiment::Experiment;
use llama_quant::source::hub::Located;
use llama_quant::{Error, Result, measure};

/// What became of the experiments of a command.
#[derive(Debug)]
pub struct Ran<T> {
    pub done: Vec<T>,
    pub failed: Vec<&'static str>,
    /// Not tried: the device was lost before.
    pub left: Vec<&'static str>,
}

/// Runs `experiments` one after the other and says which fail, until one of
/// them loses the device. `given_up` have failed already.
///
/// # Errors
/// What no other experiment would be spared: a damaged file, a full disk, an
/// interrupt.
pub fn run_each<T>(
    experiments: &[Experiment],
    given_up: &[Experiment],
    mut run: impl FnMut(&Experiment) -> Result<T>,
) -> Result<Ran<T>> {
    let names = |experiments: &[Experiment]| experiments.iter().map(|e| e.name).collect();
    let mut ran = Ran {
        done: Vec::new(),
        failed: names(given_up),
        left: Vec::new(),
    };
    for (i, experiment) in experiments.iter().enumerate() {
        let error = match run(experiment) {
            Ok(done) => {
                ran.done.push(done);
                continue;
            }
            // What one experiment has no room for another may have.
            Err(e @ (Error::Device(_) | Error::Engine { .. } | Error::Lost { .. })) => e,
            Err(e) => return Err(e),
        };
        eprintln!("{} failed: {error}", experiment.name);
        ran.failed.push(experiment.name);
        if matches!(error, Error::Lost { .. }) {
            ran.left = names(&experiments[i + 1..]);
            break;
        }
    }
    Ok(ran)
}

impl<T> Ran<T> {
    /// Where the device was lost before all was tried: goes on in a new process
    /// with `arguments`, in place of this one. Each process tries at least one
    /// experiment that none before it has tried, so that there is an end.
    ///
    /// # Errors
    /// If the user asked to stop; `folder` is where records are.
    pub fn go_on(
        &mut self,
        folder: &Path,
        arguments: impl FnOnce(&Self) -> Vec<OsString>,
    ) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        measure::check_interrupt(folder)?;
        eprintln!(
            "the device is lost to this process; a new one goes on with {}",
            self.left.join(", ")
        );
        let failed = become_process(&arguments(self));
        eprintln!("no new process can be started: {failed}");
        self.failed.append(&mut self.left);
        Ok(())
    }

    /// Names the experiments that failed.
    pub fn outcome(self, remedy: &'static str) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        Err(Error::Failed {
            experiments: self.failed,
            remedy,
        })
    }
}

/// Runs this program with `arguments` and ends as it ends; returns why that is
/// not possible.
fn become_process(arguments: &[OsString]) -> io::Error {
    let start = || {
        // Buffers end with this process.
        io::stdout().flush()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        Err(replace_process(command))
    };
    match start() {
        Ok(never) => never,
        Err(e) => e,
    }
}

/// A process beside this one would find the card's memory still taken: only the
/// end of the process that lost it gives it back.
#[cfg(unix)]
fn replace_process(mut command: Command) -> io::Error {
    std::os::unix::process::CommandExt::exec(&mut command)
}

/// Where no process can take the place of another it runs beside this one.
#[cfg(not(unix))]
fn replace_process(mut command: Command) -> io::Error {
    match command.status() {
        Ok(status) => std::process::exit(status.code().unwrap_or(1)),
        Err(e) => e,
    }
}

/// Arguments of this program for a new process.
pub struct Again(Vec<OsString>);

impl Again {
    pub fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    /// Adds `option=value`.
    #[must_use]
    pub fn with(mut self, option: &str, value: impl Into<OsString>) -> Self {
        let mut argument = OsString::from(option);
        argument.push("=");
        argument.push(value.into());
        self.0.push(argument);
        self
    }

    #[must_use]
    pub fn with_some(self, option: &str, value: Option<impl Into<OsString>>) -> Self {
        match value {
            Some(value) => self.with(option, value),
            None => self,
        }
    }

    #[must_use]
    pub fn with_each(self, option: &str, values: &[&str]) -> Self {
        values
            .iter()
            .fold(self, |again, value| again.with(option, *value))
    }

    #[must_use]
    pub fn with_flag(mut self, option: &str, given: bool) -> Self {
        self.0.extend(given.then(|| option.into()));
        self
    }

    /// What `--model` or `--dataset` named, at the same revision.
    #[must_use]
    pub fn with_located(self, option: &str, given: Option<&Path>, located: &Located) -> Self {
        let revision = located.revision.as_ref();
        let pinned = revision.map(|revision| format!("{}@{revision}", located.name));
        let named = given.map(|given| pinned.map_or_else(|| given.into(), OsString::from));
        self.with_some(option, named)
    }

    pub fn arguments(self) -> Vec<OsString> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use llama_quant::experiment::EXPERIMENTS;

    use super::*;

    fn room() -> Error {
        Error::device("memory for keys", "9 MiB", "8 MiB free", "close programs")
    }

    fn lost() -> Error {
        Error::lost(
            "running a decode step",
            "kernel embed failed: CUDA_ERROR_ILLEGAL_ADDRESS",
        )
    }

    /// The place of an experiment that fails, and its error.
    type Failing = (usize, fn() -> Error);

    /// Runs the first five experiments after the first was given up; those
    /// named fail.
    fn ran(failing: &[Failing]) -> (Result<Ran<&'static str>>, Vec<&'static str>) {
        let mut tried = Vec::new();
        let ran = run_each(&EXPERIMENTS[1..5], &EXPERIMENTS[..1], |experiment| {
            tried.push(experiment.name);
            let at = EXPERIMENTS.iter().position(|e| e == experiment);
            match failing.iter().find(|(i, _)| Some(*i) == at) {
                Some((_, error)) => Err(error()),
                None => Ok(experiment.name),
            }
        });
        (ran, tried)
    }

    #[test]
    fn an_experiment_that_loses_the_device_leaves_the_others_to_a_new_process() {
        let names = EXPERIMENTS.map(|e| e.name);
        let (outcome, tried) = ran(&[(2, lost)]);
        let outcome = outcome.expect("a run");
        assert_eq!(tried, names[1..3]);
        assert_eq!(outcome.done, names[1..2]);
        assert_eq!(outcome.failed, [names[0], names[2]]);
        assert_eq!(outcome.left, names[3..5]);
        // After the last one nothing is left to a new process.
        let (outcome, _) = ran(&[(4, lost)]);
        assert!(outcome.expect("a run").left.is_empty());
    }

    #[test]
    fn an_experiment_without_room_or_with_an_engine_that_fails_leaves_the_others_their_run() {
        let names = EXPERIMENTS.map(|e| e.name);
        let engine = || Error::engine("decoding tokens", "a token without a text");
        let (outcome, tried) = ran(&[(1, room), (3, engine)]);
        let outcome = outcome.expect("a run");
        assert_eq!(tried, names[1..5]);
        assert_eq!(outcome.done, [names[2], names[4]]);
        assert!(outcome.left.is_empty());
        let error = outcome.outcome("try again").expect_err("three failed");
        assert_eq!(
            error.to_string(),
            "without a record: fp16_baseline, fp16_control, bnb_4bit_nf4; try again"
        );
    }

    #[test]
    fn a_full_disk_ends_the_run() {
        let full = || Error::io("write", "record", io::ErrorKind::StorageFull.into());
        let (outcome, tried) = ran(&[(2, full)]);
        assert!(matches!(outcome, Err(Error::Io { .. })));
        assert_eq!(tried.len(), 2);
    }
}
