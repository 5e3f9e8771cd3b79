//! A hub on loopback: an HTTP server of threads that answers as the Hugging
//! Face hub does, and as a test wants it to fail.

#![allow(dead_code)] // Not every test file needs all of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many requests for this method and path came before.
    pub earlier: usize,
}

impl Request {
    /// Where the answer is to start.
    pub fn from(&self) -> usize {
        let range = self.headers.get("range");
        let start = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
        start.map_or(0, |start| start.parse().expect("a range"))
    }

    pub fn token(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }

    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// What is sent back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The length that the head states, if it is not that of the body.
    pub stated: Option<usize>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
    /// Nothing more is sent after so many bytes of the body.
    pub stall: Option<usize>,
    /// Before the first byte.
    pub delay: Duration,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            stated: None,
            cut: None,
            stall: None,
            delay: Duration::ZERO,
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }
}

/// Long enough to be taken for never.
pub const NEVER: Duration = Duration::from_secs(30);

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// A running server; it stops listening when it is dropped.
pub struct Server {
    pub port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, handle) = (Arc::clone(&seen), handler);
        // Ends with the process: a test's server is asked nothing afterwards.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handle) = (Arc::clone(&log), Arc::clone(&handle));
                thread::spawn(move || {
                    if let Ok(stream) = stream {
                        serve(&stream, &log, &*handle);
                    }
                });
            }
        });
        Self { port, seen }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests so far, in order.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no panic while it is held").clone()
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|r| r.is(method, part)).count()
    }
}

/// One request on one connection.
fn serve(stream: &TcpStream, log: &Mutex<Vec<Request>>, handle: &Handler) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(read) if read > 0 && line.trim_end().is_empty() => break,
            Ok(read) if read > 0 => lines.push(line.trim_end().to_owned()),
            Ok(_) => return,
            // No text: someone who speaks TLS to a plain server.
            Err(_) => {
                let mut stream = stream;
                return drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
            }
        }
    }
    let mut first = lines[0].split(' ');
    let (method, path) = (
        first.next().unwrap_or_default(),
        first.next().unwrap_or_default(),
    );
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let request = {
        let mut log = log.lock().expect("no panic while it is held");
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            earlier: log
                .iter()
                .filter(|r| r.method == method && r.path == path)
                .count(),
        };
        log.push(request.clone());
        request
    };
    let answer = handle(&request);
    // The client may have gone; that is then what the test is about.
    drop(send(stream, &request, &answer));
    drop(stream.shutdown(Shutdown::Both));
}

fn send(mut stream: &TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
    thread::sleep(answer.delay);
    let mut head = format!(
        "HTTP/1.1 {} Something\r\nconnection: close\r\n",
        answer.status
    );
    let length = answer.stated.unwrap_or(answer.body.len());
    if !answer
        .headers
        .iter()
        .any(|(name, _)| name == "content-length")
    {
        head += &format!("content-length: {length}\r\n");
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let end = answer.cut.or(answer.stall).unwrap_or(answer.body.len());
    stream.write_all(&answer.body[..end.min(answer.body.len())])?;
    if answer.stall.is_some() {
        thread::sleep(NEVER);
    }
    // So that what was sent arrives before the end does.
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0; 64]).map(drop)
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// In the query of every redirect to the second host.
pub const SIGNATURE: &str = "Signature-of-a-redirect-0xBEEF";

/// A repository of the hub.
#[derive(Clone)]
pub struct Repo {
    /// As in addresses: `org/name`, or `datasets/org/name`.
    pub path: String,
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files of this size or more lie on the second host.
    pub large: usize,
}

impl Repo {
    pub fn new<B: Into<Vec<u8>>>(
        path: &str,
        files: impl IntoIterator<Item = (&'static str, B)>,
    ) -> Self {
        Self {
            path: path.to_owned(),
            commit: COMMIT.to_owned(),
            files: files
                .into_iter()
                .map(|(name, bytes)| (name.to_owned(), bytes.into()))
                .collect(),
            large: 100_000,
        }
    }

    /// What the hub answers, where it works.
    pub fn answer(&self, request: &Request, second: &str) -> Answer {
        let api = match self.path.strip_prefix("datasets/") {
            Some(name) => format!("/api/datasets/{name}"),
            None => format!("/api/models/{}", self.path),
        };
        if request.path == format!("{api}/refs") {
            let refs = ["main", "float16", "refs-of-old"].map(|name| json!({ "name": name }));
            let refs = json!({ "branches": refs, "tags": [{ "name": "v1.0" }] });
            return Answer::new(200, refs.to_string());
        }
        if let Some(revision) = request.path.strip_prefix(&format!("{api}/revision/")) {
            if revision != "main" && revision != self.commit {
                return Answer::new(404, "{}").with("x-error-code", "RevisionNotFound");
            }
            let siblings = self.files.keys().map(|name| json!({ "rfilename": name }));
            let info = json!({ "sha": self.commit, "siblings": siblings.collect::<Vec<_>>() });
            return Answer::new(200, info.to_string());
        }
        let prefix = format!("/{}/resolve/{}/", self.path, self.commit);
        let file = request.path.strip_prefix(&prefix);
        let Some((name, bytes)) = file.and_then(|name| self.files.get_key_value(name)) else {
            return Answer::new(404, "").with("x-error-code", "RepoNotFound");
        };
        if bytes.len() < self.large {
            let etag = format!("\"{}\"", git_sum(bytes));
            return part(request, bytes)
                .with("etag", etag)
                .with("x-repo-commit", &self.commit);
        }
        Answer::new(302, "")
            .with(
                "location",
                format!("{second}/{name}?X-Amz-Signature={SIGNATURE}"),
            )
            .with("x-repo-commit", &self.commit)
            .with("x-linked-etag", format!("\"{}\"", sha256(bytes)))
            .with("x-linked-size", bytes.len().to_string())
    }

    /// What the second host answers.
    pub fn large_file(&self, request: &Request) -> Answer {
        let name = request.path.trim_start_matches('/').split('?').next();
        match name.and_then(|name| self.files.get(name)) {
            Some(bytes) => part(request, bytes),
            None => Answer::new(404, ""),
        }
    }
}

/// The whole of a file, or its rest.
pub fn part(request: &Request, bytes: &[u8]) -> Answer {
    let (start, whole) = (request.from(), bytes.len());
    if start == 0 {
        return Answer::new(200, bytes);
    }
    if start >= whole {
        return Answer::new(416, "");
    }
    let range = format!("bytes {start}-{}/{whole}", whole - 1);
    Answer::new(206, &bytes[start..]).with("content-range", range)
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn git_sum(bytes: &[u8]) -> String {
    let head = format!("blob {}\0", bytes.len());
    hex(&Sha1::new_with_prefix(head).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hub and its second host, with faults: where `fault` gives an answer, that
/// is sent; the second argument says whether it is the second host.
pub struct Hub {
    pub first: Server,
    pub second: Server,
}

impl Hub {
    pub fn start(repo: &Repo) -> Self {
        Self::with_faults(repo, |_, _, _| None)
    }

    pub fn with_faults(
        repo: &Repo,
        fault: impl Fn(&Request, bool, Answer) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let fault = Arc::new(fault);
        let (repo_there, fault_there) = (repo.clone(), Arc::clone(&fault));
        let second = Server::start(move |request| {
            let answer = repo_there.large_file(request);
            fault_there(request, true, answer.clone()).unwrap_or(answer)
        });
        let (repo, address) = (repo.clone(), second.address());
        let first = Server::start(move |request| {
            let answer = repo.answer(request, &address);
            fault(request, false, answer.clone()).unwrap_or(answer)
        });
        Self { first, second }
    }
}
