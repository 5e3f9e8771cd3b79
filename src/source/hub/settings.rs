//! What the environment says about the hub, under the names that
//! huggingface_hub gives its variables.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::Uri;

use crate::error::{Error, Result};

/// Where the hub is, where its files go, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else what is in the token file.
    pub token: Option<Token>,
    /// `HF_HUB_OFFLINE`: use the cache alone.
    pub offline: bool,
    /// `HF_HUB_ETAG_TIMEOUT`: for an answer to start.
    pub answer_timeout: Duration,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: for the next bytes of a file.
    pub read_timeout: Duration,
    /// How often a request that fails in passing is sent.
    pub attempts: u32,
    /// Before the second attempt; doubled before each further one.
    pub first_wait: Duration,
    /// The longest `Retry-After` that is waited for.
    pub longest_wait: Duration,
    /// For another process that downloads the same file and makes no headway.
    pub lock_wait: Duration,
    /// `SSL_CERT_FILE`: trusted instead of the certificates that are built in.
    pub certificates: Option<PathBuf>,
}

/// A secret: it is sent to the endpoint and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    /// Where it comes from, for messages.
    pub origin: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token from {}", self.origin)
    }
}

impl Token {
    /// # Errors
    /// If it holds anything but visible ASCII; the error does not show it.
    pub fn new(secret: &str, origin: impl Into<String>) -> Result<Self> {
        let origin = origin.into();
        if !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::hub(
                format!("the token in {origin}"),
                "visible ASCII characters",
                "others (not shown)",
                "copy the token again, without blanks or quotes around it",
            ));
        }
        Ok(Self {
            secret: secret.to_owned(),
            origin,
        })
    }

    /// What an `Authorization` header says.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }

    /// `text` without the token.
    pub(super) fn hide(&self, text: &str) -> String {
        text.replace(&self.secret, "(token)")
    }
}

/// The public hub.
pub const ENDPOINT: &str = "https://huggingface.co";

impl Settings {
    /// Settings for a cache folder, all else by default and without a token.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            cache,
            token: None,
            offline: false,
            answer_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            attempts: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(300),
            lock_wait: Duration::from_secs(60),
            certificates: None,
        }
    }

    /// What the environment asks for.
    ///
    /// # Errors
    /// If a variable cannot mean anything; the error names it.
    pub fn from_env() -> Result<Self> {
        let home = home()?;
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let mut settings = Self::new(cache);
        if let Some(endpoint) = text("HF_ENDPOINT")? {
            settings.endpoint = self::endpoint(&endpoint)?;
        }
        settings.token = token(&home)?;
        settings.offline = is_on("HF_HUB_OFFLINE")? || is_on("TRANSFORMERS_OFFLINE")?;
        if let Some(timeout) = seconds("HF_HUB_ETAG_TIMEOUT")? {
            settings.answer_timeout = timeout;
        }
        if let Some(timeout) = seconds("HF_HUB_DOWNLOAD_TIMEOUT")? {
            settings.read_timeout = timeout;
        }
        settings.certificates = path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE"));
        Ok(settings)
    }

    /// Replaces the token in `text`, so that it can be shown.
    pub(super) fn hide(&self, text: &str) -> String {
        match &self.token {
            Some(token) => token.hide(text),
            None => text.to_owned(),
        }
    }
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// `HF_HOME`, where the token lies too.
fn home() -> Result<PathBuf> {
    let caches = || path("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
    path("HF_HOME")
        .or_else(|| Some(caches()?.join("huggingface")))
        .ok_or_else(|| {
            Error::hub(
                "the cache",
                "a home folder to put it in",
                "none",
                "set HF_HOME to a folder with room for the model",
            )
        })
}

/// A variable's value; none if it is empty.
fn text(name: &str) -> Result<Option<String>> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    let unreadable = |_: OsString| refuse(name, "text in UTF-8", "other bytes");
    value
        .map(|value| value.into_string().map_err(unreadable))
        .transpose()
}

fn refuse(name: &str, wanted: &str, found: &str) -> Error {
    Error::hub(name, wanted, found, "set another value, or none")
}

fn endpoint(text: &str) -> Result<String> {
    let text = text.trim_end_matches('/');
    let wanted = "an address such as https://huggingface.co, without name, password or query";
    // The value is not shown: people put secrets into addresses.
    let refused = || refuse("HF_ENDPOINT", wanted, "something else (not shown)");
    let uri: Uri = text.parse().map_err(|_| refused())?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_secret = uri.authority().is_none_or(|a| a.as_str().contains('@'));
    if !is_web || has_secret || uri.query().is_some() || text.contains('#') {
        return Err(refused());
    }
    Ok(text.to_owned())
}

/// The token of the environment, else of the token file.
fn token(home: &Path) -> Result<Option<Token>> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(secret) = env::var_os(name) {
            // What is not text is refused as a token is: without showing it.
            let secret = secret.to_string_lossy().trim().to_owned();
            if !secret.is_empty() {
                return Token::new(&secret, name).map(Some);
            }
        }
    }
    let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    let secret = match fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read the token", &file, e)),
    };
    if secret.is_empty() {
        return Ok(None);
    }
    Token::new(&secret, file.display().to_string()).map(Some)
}

/// Whether a switch is on, as huggingface_hub reads it.
fn is_on(name: &str) -> Result<bool> {
    match text(name)?.map(|value| value.to_uppercase()).as_deref() {
        Some("1" | "ON" | "YES" | "TRUE") => Ok(true),
        None | Some("0" | "OFF" | "NO" | "FALSE") => Ok(false),
        Some(other) => Err(refuse(name, "1 or 0", &format!("{other:?}"))),
    }
}

fn seconds(name: &str) -> Result<Option<Duration>> {
    let Some(value) = text(name)? else {
        return Ok(None);
    };
    let seconds = value.trim().parse().ok().filter(|s| *s > 0.0);
    match seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
        Some(duration) => Ok(Some(duration)),
        None => Err(refuse(
            name,
            "a positive number of seconds",
            &format!("{value:?}"),
        )),
    }
}
