//! One request to the hub: redirects followed by hand so that the token stays
//! with the endpoint, failures told apart into passing and final.

use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy, Timeout};

use super::settings::Settings;
use crate::error::{Error, Mismatch, Result};

/// Redirects that a request may take.
const MOST_REDIRECTS: usize = 8;
/// Answers of the hub's API that are read whole.
const LARGEST_ANSWER_BYTES: u64 = 64 << 20;

/// Asks the hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    settings: Settings,
}

/// An answer whose body is not read yet.
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

/// Why there is no usable answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub why: Mismatch,
    pub kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The hub could not be reached or could not answer; it may be able to
    /// later, after the wait that it asks for.
    Passing(Option<Duration>),
    /// There is no way to the hub from here.
    Unreachable,
    /// Asking again would give the same.
    Final,
}

impl Failure {
    pub fn new(
        kind: FailureKind,
        thing: impl Into<String>,
        wanted: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            why: Mismatch {
                thing: thing.into(),
                wanted: wanted.into(),
                found: found.into(),
                remedy: remedy.into(),
            },
            kind,
        }
    }

    pub fn is_final(&self) -> bool {
        self.kind == FailureKind::Final
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Hub(failure.why)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let why = match error {
            Error::Hub(why) | Error::Checkpoint(why) => why,
            other => Mismatch {
                thing: "the cache".to_owned(),
                wanted: "files that can be read and written".to_owned(),
                found: other.to_string(),
                remedy: "repair it, or set HF_HUB_CACHE to another folder".to_owned(),
            },
        };
        Self {
            why,
            kind: FailureKind::Final,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
}

impl Client {
    pub fn new(settings: Settings) -> Result<Self> {
        let endpoint = settings.endpoint.parse().map_err(|_| {
            Error::hub(
                "HF_ENDPOINT",
                "an address such as https://huggingface.co",
                "something else (not shown)",
                "set another value, or none",
            )
        })?;
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            let pem =
                std::fs::read(path).map_err(|e| Error::io("read the certificates", path, e))?;
            let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(Error::hub(
                    format!("SSL_CERT_FILE {}", path.display()),
                    "certificates in PEM",
                    "none",
                    "name the file of your certificate authority, or unset the variable",
                ));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let proxy = Proxy::try_from_env();
        let is_set = |name: &&str| std::env::var_os(*name).is_some_and(|v| !v.is_empty());
        let mut names = ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"].into_iter();
        if proxy.is_none()
            && let Some(name) = names.find(is_set)
        {
            // The library passes over what it cannot read.
            return Err(Error::hub(
                name,
                "the address of a proxy, such as http://proxy.example:3128",
                "something else (not shown)",
                "correct or unset it",
            ));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("llama-quant/", env!("CARGO_PKG_VERSION")))
            // Bytes are counted and summed as they are stored.
            .accept_encoding("identity")
            .timeout_resolve(Some(settings.answer_timeout))
            .timeout_connect(Some(settings.answer_timeout))
            .timeout_recv_response(Some(settings.answer_timeout))
            .timeout_per_read(Some(settings.read_timeout))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint,
            settings,
        })
    }

    /// What the hub says of a file, asked for until it is answered or fails for
    /// good. `thing` is what errors name.
    pub fn headers(&self, thing: &str, path: &str) -> std::result::Result<HeaderMap, Failure> {
        let reply = self.with_patience(|| self.follow(thing, path, Method::Head, 0))?;
        Ok(reply.headers)
    }

    /// Runs `once` again while it fails in passing, at most as often as the
    /// settings say, with growing and jittered waits between.
    pub fn with_patience<T>(
        &self,
        mut once: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let mut attempt = 1;
        loop {
            let failure = match once() {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let FailureKind::Passing(asked) = failure.kind else {
                return Err(failure);
            };
            self.wait(attempt, failure, asked)?;
            attempt += 1;
        }
    }

    /// Waits before another attempt, or gives the failure back.
    pub fn wait(
        &self,
        attempt: u32,
        mut failure: Failure,
        asked: Option<Duration>,
    ) -> std::result::Result<(), Failure> {
        if attempt >= self.settings.attempts.max(1) {
            if attempt > 1 {
                failure.why.found += &format!(", {attempt} times");
            }
            return Err(failure);
        }
        if let Some(asked) = asked.filter(|asked| *asked > self.settings.longest_wait) {
            failure.why.found += &format!(", which asks to wait {} s", asked.as_secs());
            return Err(failure);
        }
        let wait = asked.unwrap_or_else(|| {
            let doubled = self.settings.first_wait * 2_u32.saturating_pow(attempt - 1).min(64);
            // Between half and all of it, so that many jobs do not come back together.
            doubled.mul_f64(0.5 + 0.5 * jitter())
        });
        tracing::warn!(
            "{}: {}; trying again in {:.1} s",
            failure.why.thing,
            failure.why.found,
            wait.as_secs_f64()
        );
        std::thread::sleep(wait);
        Ok(())
    }

    /// The whole text of an answer of the hub's API.
    pub fn text(&self, thing: &str, path: &str) -> std::result::Result<String, Failure> {
        self.with_patience(|| {
            let reply = self.follow(thing, path, Method::Get, 0)?;
            let mut body = reply.body;
            let text = body
                .with_config()
                .limit(LARGEST_ANSWER_BYTES)
                .lossy_utf8(true)
                .read_to_string();
            text.map_err(|e| self.broken(thing, &e))
        })
    }

    /// One request and its redirects. `path` starts with a slash and comes
    /// after the endpoint.
    ///
    /// A [`Method::Head`] request stops at the first redirect to another
    /// origin: what the hub says about a file is in the answer before it.
    pub fn follow(
        &self,
        thing: &str,
        path: &str,
        method: Method,
        from: u64,
    ) -> std::result::Result<Reply, Failure> {
        let bad_address = || {
            Failure::new(
                FailureKind::Final,
                thing,
                "a redirect to another address of the web",
                "one that is not (not shown)",
                "set HF_ENDPOINT to a hub or a mirror that works",
            )
        };
        let mut address: Uri = format!("{}{path}", self.settings.endpoint)
            .parse()
            .map_err(|_| bad_address())?;
        for _ in 0..=MOST_REDIRECTS {
            let mut reply = self.send(thing, &address, method, from)?;
            if !is_same_origin(&self.endpoint, &address) {
                // Only the hub's own words are shown: others may repeat the
                // address with its signature.
                reply.headers.remove("x-error-message");
            }
            if !reply.status.is_redirection() || reply.status == StatusCode::NOT_MODIFIED {
                return self.checked(thing, &address, reply);
            }
            let next = reply
                .headers
                .get(header::LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| joined(&address, location))
                .filter(|next| {
                    // From encrypted to plain would give the file to be changed.
                    next.scheme_str() == Some("https") || self.endpoint.scheme_str() == Some("http")
                })
                .ok_or_else(bad_address)?;
            if method == Method::Head && !is_same_origin(&self.endpoint, &next) {
                return Ok(reply);
            }
            address = next;
        }
        Err(Failure::new(
            FailureKind::Final,
            thing,
            format!("at most {MOST_REDIRECTS} redirects"),
            "more",
            "try later, or set HF_ENDPOINT to a hub or a mirror that works",
        ))
    }

    /// One exchange. The token goes to the endpoint's own origin alone.
    fn send(
        &self,
        thing: &str,
        address: &Uri,
        method: Method,
        from: u64,
    ) -> std::result::Result<Reply, Failure> {
        // Without the query, which in a redirect is a signature.
        tracing::debug!(
            "{} {}{}",
            if method == Method::Head {
                "HEAD"
            } else {
                "GET"
            },
            address.host().unwrap_or_default(),
            self.settings.hide(address.path())
        );
        let mut request = match method {
            Method::Get => self.agent.get(address),
            Method::Head => self.agent.head(address),
        };
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = &self.settings.token
            && is_same_origin(&self.endpoint, address)
        {
            request = request.header(header::AUTHORIZATION, token.bearer());
        }
        let response = request.call().map_err(|e| self.broken(thing, &e))?;
        let (parts, body) = response.into_parts();
        tracing::debug!("{}", parts.status);
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// What an error of the connection means.
    pub fn broken(&self, thing: &str, error: &ureq::Error) -> Failure {
        let passing = FailureKind::Passing(None);
        let host = self.endpoint.host().unwrap_or_default();
        let proxy = Proxy::try_from_env().filter(|proxy| !proxy.is_no_proxy(&self.endpoint));
        let way = match &proxy {
            Some(proxy) => format!("{host} through the proxy {}:{}", proxy.host(), proxy.port()),
            None => host.to_owned(),
        };
        let wanted = format!("an answer from {way}");
        let network = "check the network; on a machine without one set HF_HUB_OFFLINE=1 and fill \
                       the cache elsewhere with `llama-quant fetch`";
        let check_proxy = "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY";
        match error {
            ureq::Error::Timeout(timeout) => {
                let (limit, variable) = match timeout {
                    Timeout::PerRead | Timeout::RecvBody => {
                        (self.settings.read_timeout, "HF_HUB_DOWNLOAD_TIMEOUT")
                    }
                    _ => (self.settings.answer_timeout, "HF_HUB_ETAG_TIMEOUT"),
                };
                let found = format!("nothing for {} s", limit.as_secs_f64());
                let remedy = format!("{network}, or set {variable} to more seconds");
                Failure::new(passing, thing, wanted, found, remedy)
            }
            ureq::Error::HostNotFound => {
                let found = "no such host";
                Failure::new(FailureKind::Unreachable, thing, wanted, found, network)
            }
            // The standard library has no kind for this.
            ureq::Error::Io(cause) if cause.to_string().contains("lookup address") => {
                let found = "no such host";
                Failure::new(FailureKind::Unreachable, thing, wanted, found, network)
            }
            ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => {
                let found = "a proxy that refuses the connection";
                Failure::new(FailureKind::Unreachable, thing, wanted, found, check_proxy)
            }
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => {
                let found = format!("a TLS error ({})", self.shown(&error.to_string()));
                let remedy = "check this machine's clock; behind a proxy that opens connections \
                              set SSL_CERT_FILE to its certificate";
                Failure::new(FailureKind::Final, thing, wanted, found, remedy)
            }
            ureq::Error::Io(cause) if is_tls(cause) => {
                let found = format!("a TLS error ({})", self.shown(&cause.to_string()));
                let remedy = "check this machine's clock and that HF_ENDPOINT speaks https; behind \
                              a proxy that opens connections set SSL_CERT_FILE to its certificate";
                Failure::new(FailureKind::Final, thing, wanted, found, remedy)
            }
            ureq::Error::Io(cause) => {
                let found = format!("a broken connection ({})", self.shown(&cause.to_string()));
                let remedy = if proxy.is_some() {
                    check_proxy
                } else {
                    network
                };
                Failure::new(passing, thing, wanted, found, remedy)
            }
            // Other errors can hold whole addresses.
            ureq::Error::ConnectionFailed => {
                let remedy = if proxy.is_some() {
                    check_proxy
                } else {
                    network
                };
                Failure::new(passing, thing, wanted, "no connection", remedy)
            }
            _ => {
                let found = "an answer that breaks the rules of HTTP";
                let remedy = "set HF_ENDPOINT to a hub or a mirror that works";
                Failure::new(passing, thing, wanted, found, remedy)
            }
        }
    }

    /// Text of the other side as it can be shown: one line, short, no token.
    pub fn shown(&self, text: &str) -> String {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let text = self.settings.hide(&text);
        text.trim().chars().take(300).collect()
    }

    /// An answer with content, or what its status means.
    fn checked(
        &self,
        thing: &str,
        address: &Uri,
        reply: Reply,
    ) -> std::result::Result<Reply, Failure> {
        let known = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
        match reply.status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(reply)
            }
            // A store knows nothing of licences: there the signature of the
            // redirect is too old, and the hub gives another.
            status
                if status.is_client_error()
                    && !known.contains(&status)
                    && !is_same_origin(&self.endpoint, address) =>
            {
                Err(Failure::new(
                    FailureKind::Passing(None),
                    thing,
                    "the file from where the hub keeps it",
                    format!("{status} from {}", address.host().unwrap_or_default()),
                    "run it again; what is already downloaded is kept and continued",
                ))
            }
            _ => Err(self.refused(thing, &reply)),
        }
    }

    fn refused(&self, thing: &str, reply: &Reply) -> Failure {
        let Settings {
            endpoint, token, ..
        } = &self.settings;
        let said = |name: &str| reply.headers.get(name).and_then(|v| v.to_str().ok());
        let code = said("x-error-code").unwrap_or_default();
        let mut found = reply.status.to_string();
        if let Some(message) = said("x-error-message") {
            found = format!("{found} ({})", self.shown(message));
        }
        let repository = thing.split(['@', ',']).next().unwrap_or(thing);
        match reply.status {
            _ if code == "GatedRepo" || reply.status == StatusCode::FORBIDDEN => {
                let account = match token {
                    Some(token) => {
                        format!("with the account of the token in {}", token.origin)
                    }
                    None => format!(
                        "with your account, and set HF_TOKEN to a token from {endpoint}/settings/tokens"
                    ),
                };
                let remedy = format!(
                    "accept the licence at {endpoint}/{repository} {account}; a fine-grained \
                     token also needs leave to read gated repositories"
                );
                Failure::new(FailureKind::Final, thing, "leave to read it", found, remedy)
            }
            StatusCode::UNAUTHORIZED => {
                let remedy = match token {
                    None => format!(
                        "check the name; if it is private or gated, set HF_TOKEN to a token from \
                         {endpoint}/settings/tokens, or run `hf auth login`"
                    ),
                    Some(token) => format!(
                        "check the name, and that the token in {} is still valid at \
                         {endpoint}/settings/tokens",
                        token.origin
                    ),
                };
                Failure::new(FailureKind::Final, thing, "leave to read it", found, remedy)
            }
            StatusCode::NOT_FOUND => {
                let remedy = format!("check the name at {endpoint}/{repository}");
                Failure::new(
                    FailureKind::Final,
                    thing,
                    "something of that name",
                    found,
                    remedy,
                )
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let remedy = match token {
                    None => "wait some minutes; with HF_TOKEN set the hub allows more",
                    Some(_) => "wait some minutes, or run fewer jobs at once",
                };
                let kind = FailureKind::Passing(retry_after(&reply.headers));
                Failure::new(kind, thing, "an answer", found, remedy)
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                let remedy = "try again later; https://status.huggingface.co says how the hub is";
                let kind = FailureKind::Passing(retry_after(&reply.headers));
                Failure::new(kind, thing, "an answer", found, remedy)
            }
            _ => {
                let remedy = "set HF_ENDPOINT to a hub or a mirror that works";
                Failure::new(FailureKind::Final, thing, "an answer", found, remedy)
            }
        }
    }
}

/// rustls reports through `io::Error` while data flows.
fn is_tls(cause: &std::io::Error) -> bool {
    cause.kind() == std::io::ErrorKind::InvalidData
        || cause
            .get_ref()
            .is_some_and(|inner| format!("{inner:?}").contains("Certificate"))
}

/// The wait that an answer asks for: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let wait = date.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default())
}

/// In 0..1, different in each process and call.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0);
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// `location` as seen from `base`.
fn joined(base: &Uri, location: &str) -> Option<Uri> {
    let next: Uri = location.parse().ok()?;
    if next.host().is_some() && next.scheme().is_some() {
        return matches!(next.scheme_str(), Some("http" | "https")).then_some(next);
    }
    if !location.starts_with('/') || location.starts_with("//") {
        return None;
    }
    let mut parts = base.clone().into_parts();
    parts.path_and_query = next.into_parts().path_and_query;
    Uri::from_parts(parts).ok()
}

/// Scheme, host and port are the same.
fn is_same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => Some(port),
        (None, Some("https")) => Some(443),
        (None, Some("http")) => Some(80),
        _ => None,
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str()
        && host(a) == host(b)
        && host(a).is_some()
        && port(a) == port(b)
}
