//! One error type for the whole crate. Whatever comes from outside (a file, an
//! option, a device) and does not fit ends in a [`Mismatch`]: the thing, what
//! was wanted, what was found, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The four parts of a useful refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What is wrong: a tensor's name, a file and line, an option.
    pub thing: String,
    /// What would have been accepted.
    pub wanted: String,
    /// What is there instead.
    pub found: String,
    /// What the reader can do now.
    pub remedy: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            thing,
            wanted,
            found,
            remedy,
        } = self;
        write!(f, "{thing}: expected {wanted}, found {found}; {remedy}")
    }
}

/// Everything that can go wrong, by the room it went wrong in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// The verb and what was being done, such as "read the configuration".
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// `config.json` does not describe a model this crate can run.
    #[error("configuration {0}")]
    Config(Mismatch),
    /// A tensor or a checkpoint file does not fit.
    #[error("checkpoint {0}")]
    Checkpoint(Mismatch),
    /// `tokenizer.json` cannot be used.
    #[error("tokenizer {0}")]
    Tokenizer(Mismatch),
    /// The hub or its cache does not give what is wanted.
    #[error("hub {0}")]
    Hub(Mismatch),
    /// A data set does not have one of the accepted layouts.
    #[error("dataset {0}")]
    Dataset(Mismatch),
    /// A record cannot be read, resumed or compared.
    #[error("record {0}")]
    Record(Mismatch),
    /// A report does not belong to its records.
    #[error("report {0}")]
    Report(Mismatch),
    /// A command line option or an argument of the library is not usable.
    #[error("option {0}")]
    Usage(Mismatch),
    /// The user asked the run to stop.
    #[error(
        "interrupted; what is finished is in {}: the same command goes on from there",
        folder.display()
    )]
    Interrupted {
        /// Where the unfinished record lies.
        folder: PathBuf,
    },
    /// A device is not there, too old, or too small.
    #[error("device {0}")]
    Device(Mismatch),
    /// The engine failed while running.
    #[error("engine failed while {doing}: {cause}")]
    Engine { doing: String, cause: String },
    /// The device failed in a way after which it refuses this process all work.
    #[error("device lost while {doing}: {cause}; only a new process can use it again")]
    Lost { doing: String, cause: String },
    /// Experiments of a command failed, each for a reason that was printed.
    #[error("without a record: {}; {remedy}", experiments.join(", "))]
    Failed {
        experiments: Vec<&'static str>,
        remedy: &'static str,
    },
}

/// Declares one constructor for each variant that holds a [`Mismatch`].
macro_rules! mismatch_constructors {
    ($($name:ident => $variant:ident),* $(,)?) => {
        impl Error {
            $(
                #[doc = concat!("An [`Error::", stringify!($variant), "`] from its four parts.")]
                pub fn $name(
                    thing: impl Into<String>,
                    wanted: impl Into<String>,
                    found: impl Into<String>,
                    remedy: impl Into<String>,
                ) -> Self {
                    Self::$variant(Mismatch {
                        thing: thing.into(),
                        wanted: wanted.into(),
                        found: found.into(),
                        remedy: remedy.into(),
                    })
                }
            )*
        }
    };
}

mismatch_constructors! {
    config => Config,
    checkpoint => Checkpoint,
    tokenizer => Tokenizer,
    hub => Hub,
    dataset => Dataset,
    record => Record,
    report => Report,
    usage => Usage,
    device => Device,
}

impl Error {
    /// An [`Error::Io`]; `action` completes "cannot ... PATH".
    pub fn io(action: &'static str, path: impl AsRef<Path>, cause: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            cause,
        }
    }

    /// An [`Error::Engine`] from whatever the library underneath reported.
    pub fn engine(doing: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self::Engine {
            doing: doing.into(),
            cause: cause.to_string(),
        }
    }

    /// An [`Error::Lost`] from what the driver reported.
    pub fn lost(doing: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::Lost {
            doing: doing.into(),
            cause: cause.into(),
        }
    }
}
