//! One file from the hub into the cache: described, downloaded, continued
//! where it broke off, and kept only if its checksum is the one stated.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode, header};

use super::cache::{Store, full, make_folder, unwritable};
use super::client::{Client, Failure, FailureKind, Method};
use super::id::is_hex;
use super::settings::Settings;
use crate::source::hex;

/// Progress that makes a broken connection no lost attempt.
const HEADWAY_BYTES: u64 = 1 << 20;
const BUFFER_BYTES: usize = 1 << 18;

/// What the hub states about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stated {
    /// SHA-256 of a large file; of a small one the SHA-1 that git gives it.
    sum: String,
    bytes: u64,
}

/// A running checksum of the kind that a stated one is.
enum Sum {
    Sha256(Sha256),
    Git(Sha1),
}

impl Sum {
    /// None if `stated` is of no known kind.
    fn like(stated: &Stated) -> Option<Self> {
        match stated.sum.len() {
            _ if !is_hex(&stated.sum) => None,
            64 => Some(Self::Sha256(Sha256::new())),
            40 => {
                let head = format!("blob {}\0", stated.bytes);
                Some(Self::Git(Sha1::new_with_prefix(head)))
            }
            _ => None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::Git(sum) => sum.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Sha256(sum) => hex(&sum.finalize()),
            Self::Git(sum) => hex(&sum.finalize()),
        }
    }
}

/// Whether the content of `path` has the checksum `sum`.
pub(super) fn is_whole(path: &Path, sum: &str) -> std::io::Result<bool> {
    let stated = Stated {
        sum: sum.to_owned(),
        bytes: fs::metadata(path)?.len(),
    };
    let Some(mut running) = Sum::like(&stated) else {
        return Ok(false);
    };
    add_file(&mut running, &mut File::open(path)?)?;
    Ok(running.finish() == sum)
}

fn add_file(sum: &mut Sum, file: &mut File) -> std::io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            read => {
                sum.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
}

/// The file `name` of a commit, and what errors call it.
pub(super) struct Wanted<'a> {
    pub store: &'a Store,
    pub commit: &'a str,
    pub name: &'a str,
}

impl Wanted<'_> {
    fn thing(&self) -> String {
        format!("{}, file {}", self.store.thing(), self.name)
    }

    fn path(&self) -> String {
        let name: String = self.name.bytes().map(encoded).collect();
        format!("/{}/resolve/{}/{name}", self.store.repo.url(), self.commit)
    }
}

/// A byte of a file name as an address holds it.
fn encoded(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

/// Puts the file into the cache, if it is not there yet.
pub(super) fn fetch(
    client: &Client,
    settings: &Settings,
    wanted: &Wanted<'_>,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let Wanted {
        store,
        commit,
        name,
    } = wanted;
    let stated = stated(client, wanted)?;
    let blob = store.blob(&stated.sum);
    if !blob.is_file() {
        let folder = blob.parent().unwrap_or(&blob);
        make_folder(folder)?;
        let _lock = store.lock(&wanted.thing(), &stated.sum, settings.lock_wait)?;
        // Another process may have held the lock to do just this.
        if !blob.is_file() {
            download(client, wanted, &stated, progress)?;
        }
    }
    store.link(commit, name, &stated.sum)
}

/// Asks what the file's checksum and size are.
fn stated(client: &Client, wanted: &Wanted<'_>) -> Result<Stated, Failure> {
    let thing = wanted.thing();
    let headers = client.headers(&thing, &wanted.path())?;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(commit) = text("x-repo-commit").filter(|commit| commit != &wanted.commit) {
        return Err(Failure::new(
            FailureKind::Final,
            thing,
            format!("the file of commit {}", wanted.commit),
            format!("that of {}", client.shown(commit)),
            "set HF_ENDPOINT to a hub or a mirror that keeps commits apart",
        ));
    }
    let sum = text("x-linked-etag").or_else(|| text("etag"));
    let sum = sum.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
    let bytes = text("x-linked-size").or_else(|| text("content-length"));
    let bytes = bytes.and_then(|bytes| bytes.trim().parse().ok());
    if let (Some(sum), Some(bytes)) = (&sum, bytes) {
        let stated = Stated {
            sum: sum.clone(),
            bytes,
        };
        if Sum::like(&stated).is_some() {
            return Ok(stated);
        }
    }
    let found = match (sum, bytes) {
        (None, _) => "no checksum".to_owned(),
        (Some(_), None) => "no size".to_owned(),
        (Some(sum), Some(_)) => format!("the etag {:?}", client.shown(&sum)),
    };
    Err(Failure::new(
        FailureKind::Final,
        thing,
        "its size, and its SHA-256 or git hash as the etag, to check the download with",
        found,
        "set HF_ENDPOINT to a hub or a mirror that states them",
    ))
}

/// Downloads what is missing of the file, as often as it takes.
fn download(
    client: &Client,
    wanted: &Wanted<'_>,
    stated: &Stated,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let thing = wanted.thing();
    let part = wanted.store.part(&stated.sum);
    progress.set_prefix(wanted.name.to_owned());
    progress.set_length(stated.bytes);
    let mut attempt = 1;
    loop {
        let before = length(&part);
        let failure = match attempt_download(client, wanted, stated, &part, progress) {
            Ok(()) => break,
            Err(failure) => failure,
        };
        let FailureKind::Passing(asked) = failure.kind else {
            return Err(failure);
        };
        if length(&part) >= before.saturating_add(HEADWAY_BYTES) {
            attempt = 1;
        }
        client.wait(attempt, failure, asked)?;
        attempt += 1;
    }
    let blob = wanted.store.blob(&stated.sum);
    fs::rename(&part, &blob).map_err(|e| unwritable(&blob, &e, None))?;
    tracing::info!("{thing}: {} bytes, checksum {}", stated.bytes, stated.sum);
    Ok(())
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Continues the file `part` to its end and checks it.
fn attempt_download(
    client: &Client,
    wanted: &Wanted<'_>,
    stated: &Stated,
    part: &Path,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let thing = wanted.thing();
    let refuse_write = |e: &std::io::Error, have: u64| {
        unwritable(part, e, Some(stated.bytes.saturating_sub(have)))
    };
    if length(part) > stated.bytes {
        fs::remove_file(part).map_err(|e| refuse_write(&e, 0))?;
    }
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(part)
        .map_err(|e| refuse_write(&e, 0))?;
    let fresh = || Sum::like(stated).expect("`stated` checked the kind of the sum");
    let mut sum = fresh();
    // A device in place of a file is never read to its end.
    let mut have = match length(part) {
        0 => 0,
        _ => add_file(&mut sum, &mut file).map_err(|e| refuse_write(&e, 0))?,
    };
    let resumed = have > 0;
    refuse_without_room(part, stated.bytes - have)?;
    if have < stated.bytes || stated.bytes == 0 {
        let reply = client.follow(&thing, &wanted.path(), Method::Get, have)?;
        let starts_over = match reply.status {
            StatusCode::PARTIAL_CONTENT => range_start(&reply.headers) != Some(have),
            // The server does not know ranges.
            StatusCode::OK => have > 0,
            _ => true,
        };
        if starts_over {
            file.set_len(0).map_err(|e| refuse_write(&e, 0))?;
            (have, sum) = (0, fresh());
        }
        if reply.status != StatusCode::OK && starts_over {
            return Err(Failure::new(
                FailureKind::Passing(None),
                thing,
                "the rest of the file",
                format!("another part ({})", reply.status),
                "try again; it is then downloaded from its start",
            ));
        }
        let announced = reply.body.content_length().map(|rest| rest + have);
        if let Some(other) = announced.filter(|bytes| *bytes != stated.bytes) {
            return Err(wrong_size(
                &thing,
                stated,
                &format!("{other} bytes announced"),
            ));
        }
        let mut body = reply.body.into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        progress.set_position(have);
        loop {
            let read = body
                .read(&mut buffer)
                .map_err(|e| client.broken(&thing, &e.into()))?;
            if read == 0 {
                break;
            }
            have += read as u64;
            if have > stated.bytes {
                drop(fs::remove_file(part));
                return Err(wrong_size(&thing, stated, "more"));
            }
            file.write_all(&buffer[..read])
                .map_err(|e| refuse_write(&e, have - read as u64))?;
            sum.update(&buffer[..read]);
            progress.inc(read as u64);
        }
    }
    if have < stated.bytes {
        return Err(Failure::new(
            FailureKind::Passing(None),
            thing,
            format!("{} bytes", stated.bytes),
            format!("an end after {have}"),
            "run it again; it goes on from there",
        ));
    }
    file.sync_all().map_err(|e| refuse_write(&e, have))?;
    let found = sum.finish();
    if found == stated.sum {
        return Ok(());
    }
    fs::remove_file(part).map_err(|e| refuse_write(&e, have))?;
    // What was there before may be to blame; without it once more.
    let kind = if resumed {
        FailureKind::Passing(None)
    } else {
        FailureKind::Final
    };
    Err(Failure::new(
        kind,
        thing,
        format!(
            "content with the checksum {} that the hub states",
            stated.sum
        ),
        format!("content with {found}"),
        "it was thrown away; run it again, and if that fails set HF_ENDPOINT to another mirror",
    ))
}

fn wrong_size(thing: &str, stated: &Stated, found: &str) -> Failure {
    Failure::new(
        FailureKind::Final,
        thing,
        format!("{} bytes as the hub states", stated.bytes),
        found,
        "set HF_ENDPOINT to a hub or a mirror that works",
    )
}

/// Says before the download that the disk is too small.
fn refuse_without_room(part: &Path, bytes: u64) -> Result<(), Failure> {
    let folder = part.parent().unwrap_or(part);
    match fs4::available_space(folder) {
        Ok(free) if free < bytes => Err(full(part, bytes, &format!("{free} free"))),
        _ => Ok(()),
    }
}

/// Where a partial answer starts.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}
