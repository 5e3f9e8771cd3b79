//! The cache on disk, in the layout that all tools of the hub share:
//! `models--ORG--NAME/{blobs,refs,snapshots}` and `.locks` beside it.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::{Cache, CacheRepo, Repo};

use super::client::{Failure, FailureKind};
use super::id::{Id, Kind, is_commit};
use crate::error::{Error, Result};

/// The part of the cache that belongs to one repository.
pub(super) struct Store {
    pub id: Id,
    pub kind: Kind,
    pub repo: Repo,
    cache: PathBuf,
    inner: CacheRepo,
}

impl Store {
    pub fn new(cache: &Path, id: &Id, kind: Kind) -> Self {
        let repo = id.repo(kind);
        Self {
            id: id.clone(),
            kind,
            inner: Cache::new(cache.to_path_buf()).repo(repo.clone()),
            cache: cache.to_path_buf(),
            repo,
        }
    }

    /// What errors call it: the way to it on the hub, and the revision.
    pub fn thing(&self) -> String {
        format!("{}@{}", self.repo.url(), self.id.revision)
    }

    fn root(&self) -> PathBuf {
        self.cache.join(self.repo.folder_name())
    }

    /// Where the files of a commit lie.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.inner.pointer_path(commit)
    }

    /// Where content with this checksum lies.
    pub fn blob(&self, sum: &str) -> PathBuf {
        self.inner.blob_path(sum)
    }

    /// Where it grows while it is downloaded; huggingface_hub's name.
    pub fn part(&self, sum: &str) -> PathBuf {
        self.blob(&format!("{sum}.incomplete"))
    }

    /// The commit that the revision stood for when it was last asked for.
    pub fn commit(&self) -> Result<Option<String>> {
        if let Some(commit) = self.id.commit() {
            return Ok(Some(commit.to_owned()));
        }
        let path = self.root().join("refs").join(&self.id.revision);
        match fs::read_to_string(&path) {
            Ok(text) if is_commit(text.trim()) => Ok(Some(text.trim().to_owned())),
            Ok(_) => Err(Error::hub(
                path.display().to_string(),
                "a full commit hash",
                "something else",
                "delete this file",
            )),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// Remembers what the revision stands for.
    pub fn remember(&self, commit: &str) -> std::result::Result<(), Failure> {
        if self.id.commit().is_some() {
            return Ok(());
        }
        let path = self.root().join("refs").join(&self.id.revision);
        let folder = path.parent().unwrap_or(&path);
        make_folder(folder)?;
        let written = tempfile::Builder::new()
            .make_in(folder, |path| File::create_new(path))
            .and_then(|mut file| {
                file.write_all(commit.as_bytes())?;
                file.persist(&path).map_err(|e| e.error)
            });
        match written {
            Ok(_) => Ok(()),
            Err(e) => Err(unwritable(&path, &e, None)),
        }
    }

    /// Commits that the cache holds files of.
    pub fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root().join("snapshots"));
        let names = entries.into_iter().flatten().flatten();
        let mut commits: Vec<String> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_commit(name))
            .collect();
        commits.sort();
        commits
    }

    /// Lets the snapshot of `commit` show the blob `sum` under `name`.
    pub fn link(&self, commit: &str, name: &str, sum: &str) -> std::result::Result<(), Failure> {
        let place = self.snapshot(commit).join(name);
        let folder = place.parent().unwrap_or(&place);
        make_folder(folder)?;
        let up = "../".repeat(name.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{sum}"));
        if fs::read_link(&place).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let linked = match fs::remove_file(&place) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => symlink(&target, &place, &self.blob(sum)),
        };
        match linked {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(unwritable(&place, &e, None)),
            _ => Ok(()),
        }
    }

    /// Removes a file of a snapshot and what it stands for.
    pub fn remove(&self, commit: &str, name: &str) -> std::result::Result<(), Failure> {
        let place = self.snapshot(commit).join(name);
        let blob = place.canonicalize().ok();
        for path in blob.iter().chain([&place]) {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(unwritable(path, &e, None));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a file that a symbolic link leads out of the repository's part
    /// of the cache.
    pub fn check_inside(&self, file: &Path) -> Result<()> {
        let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("open", path, e));
        let (root, file_at) = (real(&self.root())?, real(file)?);
        if file_at.starts_with(&root) {
            return Ok(());
        }
        Err(Error::hub(
            file.display().to_string(),
            format!("a file below {}", root.display()),
            format!("a link to {}", file_at.display()),
            "delete the link; the file is then downloaded again",
        ))
    }

    /// Holds the lock for downloading `sum`, the one that huggingface_hub
    /// takes. Waits while another process holds it, up to `patience` without
    /// any growth of the file.
    pub fn lock(
        &self,
        thing: &str,
        sum: &str,
        patience: Duration,
    ) -> std::result::Result<File, Failure> {
        let folder = self.cache.join(".locks").join(self.repo.folder_name());
        make_folder(&folder)?;
        let path = folder.join(format!("{sum}.lock"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|e| unwritable(&path, &e, None))?;
        let part = self.part(sum);
        let length = || fs::metadata(&part).map(|m| m.len()).ok();
        let mut seen = (length(), Instant::now());
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => {
                    // Some network file systems have none. The checksum still
                    // keeps a file that two processes wrote out of the cache.
                    tracing::warn!("{}: cannot be locked ({e})", path.display());
                    return Ok(file);
                }
            }
            if !said {
                tracing::warn!("{thing}: waiting for another process that downloads it");
                said = true;
            }
            if length() != seen.0 {
                seen = (length(), Instant::now());
            }
            if seen.1.elapsed() >= patience {
                return Err(Failure::new(
                    FailureKind::Final,
                    thing,
                    format!("the lock {}", path.display()),
                    format!(
                        "that another process holds it and has downloaded nothing for {} s",
                        patience.as_secs_f64()
                    ),
                    "wait for that process or stop it; its lock ends with it",
                ));
            }
            std::thread::sleep(Duration::from_millis(100).min(patience));
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, place: &Path, _: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(not(unix))]
fn symlink(_: &Path, place: &Path, blob: &Path) -> std::io::Result<()> {
    fs::copy(blob, place).map(drop)
}

pub(super) fn make_folder(path: &Path) -> std::result::Result<(), Failure> {
    fs::create_dir_all(path).map_err(|e| unwritable(path, &e, None))
}

/// What an error of writing into the cache means; `bytes` is what the file
/// still needs.
pub(super) fn unwritable(path: &Path, cause: &std::io::Error, bytes: Option<u64>) -> Failure {
    let thing = format!("the cache, {}", path.display());
    let is_full = matches!(
        cause.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    );
    if is_full {
        return full(path, bytes.unwrap_or_default(), &cause.to_string());
    }
    Failure::new(
        FailureKind::Final,
        thing,
        "a place that can be written to",
        cause.to_string(),
        "set HF_HOME or HF_HUB_CACHE to a folder that you can write to",
    )
}

/// What is said where `bytes` find no room.
pub(super) fn full(path: &Path, bytes: u64, found: &str) -> Failure {
    Failure::new(
        FailureKind::Final,
        format!("the cache, {}", path.display()),
        format!("room for {bytes} more bytes"),
        found,
        "free some space, or set HF_HUB_CACHE to a folder on a larger disk; what is already \
         downloaded is kept and continued",
    )
}
