//! Names that come from outside and end up in paths and addresses: repository
//! ids, revisions, file names, checksums. None of them can leave the cache.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use hf_hub::{Repo, RepoType};

use crate::error::{Error, Result};

/// What is read of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Configuration, tokenizer and weights.
    Model,
    /// The configuration of a model alone.
    Config,
    Dataset,
}

impl Kind {
    /// The option that names it on the command line.
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::Model | Self::Config => "--model",
            Self::Dataset => "--dataset",
        }
    }
}

/// `ORG/NAME` with an optional `@REVISION`: a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id {
    /// `ORG/NAME`.
    pub name: String,
    /// `main` unless the user names another.
    pub revision: String,
}

impl Id {
    /// Whether `text` is meant as an id rather than as a path: `ORG/NAME` of
    /// the letters that ids have, and not a path by its first character.
    pub fn is_meant(text: &str) -> bool {
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        let mut parts = name.split('/');
        let plain = |part: Option<&str>| {
            part.is_some_and(|part| {
                !part.is_empty() && part.chars().all(is_letter) && !matches!(part, "." | "..")
            })
        };
        plain(parts.next()) && plain(parts.next()) && parts.next().is_none()
    }

    /// The repository, in the words of hf-hub.
    pub(super) fn repo(&self, kind: Kind) -> Repo {
        let kind = match kind {
            Kind::Model | Kind::Config => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(self.name.clone(), kind, self.revision.clone())
    }

    /// The full commit hash, if that is what the revision is.
    pub(super) fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let refuse = |wanted: &str| {
            Err(Error::hub(
                format!("{text:?}"),
                wanted,
                "another name",
                "write ORG/NAME or ORG/NAME@REVISION as the hub shows it, or ./FOLDER for a path",
            ))
        };
        // The rule of huggingface_hub's `validate_repo_id`.
        let is_part = |part: &str| {
            let edge = |c: char| c == '.' || c == '-';
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(is_letter)
                && !part.starts_with(edge)
                && !part.ends_with(edge)
                && !part.contains("--")
                && !part.contains("..")
        };
        let named = name.split_once('/');
        if !named.is_some_and(|(org, name)| is_part(org) && is_part(name)) {
            return refuse("an id of two parts of letters, digits, `-`, `_` and `.`");
        }
        let is_revision = revision.len() <= 200
            && revision.split('/').all(|part| {
                !part.is_empty()
                    && part.chars().all(is_letter)
                    && !part.starts_with('.')
                    && !part.contains("..")
            });
        if !is_revision {
            return refuse("a branch, a tag or a commit after the @");
        }
        Ok(Self {
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// A full commit hash: 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a file name of a repository stays below the folder it is put in.
pub(super) fn stays_below(name: &str) -> bool {
    let path = Path::new(name);
    !name.is_empty()
        && !name.contains(['\\', ':'])
        && !name.chars().any(char::is_control)
        // `a//b` and `a/.` would be equal to other names.
        && name.split('/').all(|part| !part.is_empty() && part != ".")
        && path.components().all(|part| matches!(part, Component::Normal(_)))
}
