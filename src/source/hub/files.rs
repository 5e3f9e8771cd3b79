//! Which files of a repository this program reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cache::Store;
use super::client::{Failure, FailureKind};
use super::id::{Kind, stays_below};
use crate::error::{Error, Result};
use crate::source::checkpoint::{INDEX, SINGLE, shards};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The files to download first, out of those that the hub lists. A sharded
/// model's index names the others.
pub(super) fn first(store: &Store, listed: &[&str]) -> std::result::Result<Vec<String>, Failure> {
    let named = |names: &[&str]| {
        let absent = names.iter().find(|name| !listed.contains(name));
        match absent {
            Some(name) => Err(not_listed(store, name, listed)),
            None => Ok(names.iter().map(|&name| name.to_owned()).collect()),
        }
    };
    match store.kind {
        Kind::Model => {
            let weights = if listed.contains(&INDEX) {
                INDEX
            } else {
                SINGLE
            };
            named(&[CONFIG, TOKENIZER, weights])
        }
        Kind::Config => named(&[CONFIG]),
        Kind::Dataset => {
            let found: Vec<&str> = listed
                .iter()
                .copied()
                .filter(|n| is_validation(n))
                .collect();
            match found.as_slice() {
                [one] if stays_below(one) => Ok(vec![(*one).to_owned()]),
                [] => Err(Failure::new(
                    FailureKind::Final,
                    store.thing(),
                    "a parquet file of its validation split",
                    "none",
                    format!(
                        "try {}@refs/convert/parquet, where the hub keeps its own conversion",
                        store.id.name
                    ),
                )),
                [one] => Err(hostile(store, one)),
                several => Err(Failure::new(
                    FailureKind::Final,
                    store.thing(),
                    "one parquet file of its validation split",
                    format!("{}", several.len()),
                    "download them and join them into one file of JSON lines",
                )),
            }
        }
    }
}

fn is_validation(name: &str) -> bool {
    name.ends_with(".parquet") && name.contains("validation")
}

fn hostile(store: &Store, name: &str) -> Failure {
    Failure::new(
        FailureKind::Final,
        store.thing(),
        "names of files below its folder",
        format!("{name:?}"),
        "do not use this repository unless you know where it comes from",
    )
}

/// Refuses a repository without the file `name`.
pub(super) fn not_listed(store: &Store, name: &str, listed: &[&str]) -> Failure {
    let remedy = match name {
        SINGLE
            if listed
                .iter()
                .any(|n| n.ends_with(".bin") || n.ends_with(".pth")) =>
        {
            "its weights are in pickle files, which can run code; use a revision or a copy with \
             safetensors"
        }
        TOKENIZER if listed.contains(&"tokenizer.model") => {
            "its tokenizer is in an older format; use a copy converted to a fast tokenizer"
        }
        _ => "use a Llama checkpoint as transformers saves it",
    };
    let near = match listed {
        [] => "no files at all".to_owned(),
        _ => format!(
            "none; the nearest names are {}",
            nearest(name, listed.iter().copied())
        ),
    };
    Failure::new(
        FailureKind::Final,
        store.thing(),
        format!("a file {name}"),
        near.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect::<String>(),
        remedy,
    )
}

/// The three names that are most like `name`.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_by_key(|other| (strsim::levenshtein(name, other), *other));
    names.truncate(3);
    names.join(", ")
}

/// What a snapshot lacks, by name; for a data set any one file will do.
pub(super) fn missing(kind: Kind, snapshot: &Path) -> Result<Vec<String>> {
    let mut wanted = BTreeSet::new();
    match kind {
        Kind::Model => {
            wanted.extend([CONFIG, TOKENIZER].map(str::to_owned));
            let index = snapshot.join(INDEX);
            if index.is_file() {
                wanted.extend(shards(&index)?);
            } else {
                wanted.insert(SINGLE.to_owned());
            }
        }
        Kind::Config => {
            wanted.insert(CONFIG.to_owned());
        }
        Kind::Dataset => {
            if !present(snapshot)?
                .iter()
                .any(|(name, _)| is_validation(name))
            {
                return Ok(vec!["a parquet file of the validation split".to_owned()]);
            }
        }
    }
    wanted.retain(|name| !snapshot.join(name).is_file());
    Ok(wanted.into_iter().collect())
}

/// What a user of the snapshot opens: its folder, or the one file.
pub(super) fn path(kind: Kind, snapshot: &Path) -> Result<PathBuf> {
    match kind {
        Kind::Model | Kind::Config => Ok(snapshot.to_path_buf()),
        Kind::Dataset => {
            let mut files = present(snapshot)?.into_iter();
            let file = files.find(|(name, _)| is_validation(name));
            file.map(|(_, path)| path).ok_or_else(|| {
                Error::hub(
                    snapshot.display().to_string(),
                    "a parquet file of the validation split",
                    "none",
                    "run `llama-quant fetch` again",
                )
            })
        }
    }
}

/// Name and path of every file below `dir`, or of `dir` if it is one; none if
/// it does not exist.
/// Folders that links lead to are not entered.
pub(super) fn present(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    if dir.is_file() {
        return Ok(vec![(String::new(), dir.to_path_buf())]);
    }
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("list", &folder, e))? {
            let entry = entry.map_err(|e| Error::io("list", &folder, e))?;
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder {
                folders.push(path);
            } else if path.is_file()
                && let Some(name) = path.strip_prefix(dir).ok().and_then(Path::to_str)
            {
                found.push((name.replace('\\', "/"), path));
            }
        }
    }
    found.sort();
    Ok(found)
}
