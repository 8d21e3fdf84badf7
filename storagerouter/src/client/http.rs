//! One HTTP request to the API, over TCP or TLS, and its errors in words.

mod bulk;

use crate::cli::ApiArgs;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use bytes::Bytes;
use framework::types::Problem;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

const CONNECT: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;

/// A connection, whatever it goes over.
trait Line: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Line for T {}

/// The API of one storage router.
pub struct Api {
    base: Uri,
    text: String,
    token: Option<String>,
    tls: Option<tokio_rustls::TlsConnector>,
    timeout: Duration,
}

impl Api {
    /// The API that the flags name; reads the token and the certificates.
    pub fn new(args: &ApiArgs) -> Result<Self> {
        let text = args.api.trim_end_matches('/').to_string();
        let usage = |why: &str| Failure::usage(format!("--api {text}: {why}, as in http://127.0.0.1:8080"));
        let base: Uri = text.parse().map_err(|e| usage(&format!("{e}; write a URL")))?;
        let tls = match base.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let ca = args
                    .api_ca_file
                    .as_deref()
                    .ok_or_else(|| Failure::usage(format!("--api {text}: https needs --api-ca-file")))?;
                Some(connector(ca)?)
            }
            _ => return Err(usage("write an http or https URL")),
        };
        if base.host().is_none_or(str::is_empty) {
            return Err(usage("the URL names no host; write one"));
        }
        let token = match &args.token_file {
            None => None,
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|e| Failure::usage(format!("reading the token file {}: {e}", path.display())))?
                    .trim()
                    .to_string(),
            ),
        };
        Ok(Self { base, text, token, tls, timeout: Duration::from_secs(120) })
    }

    /// The same API, with another bound on the time of a request.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A request with an answer. `path` begins with a slash.
    pub async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A> {
        let bytes = self.request(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::error(
                Exit::Failure,
                format!("the answer of {}{path} is not what this version expects ({e})", self.text),
            )
        })
    }

    /// `GET` with an answer.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// A request whose answer, if there is one, does not matter.
    pub async fn request(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Bytes> {
        let seconds = self.timeout.as_secs();
        match tokio::time::timeout(self.timeout, self.exchange(method, path, body)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::error(
                Exit::Unreachable,
                format!("the storage router at {} gave no answer within {seconds} seconds", self.text),
            )),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Bytes> {
        match self.ask(method.clone(), path, body).await? {
            Answer::Is(bytes) => Ok(bytes),
            // Another router owns what is asked about. One that sends us on again is as confused as we are.
            Answer::At(url) => match self.elsewhere(&url)?.ask(method, path, body).await? {
                Answer::Is(bytes) => Ok(bytes),
                Answer::At(_) => Err(Failure::error(
                    Exit::Failure,
                    format!("{} and {url} each say that the other one is to be asked: try again", self.text),
                )),
            },
        }
    }

    /// The API of the router that answers for `path`, which may be another one: for what is not sent twice.
    pub async fn of_owner(&self, path: &str) -> Result<Option<Self>> {
        match self.ask(Method::GET, path, None::<&()>).await? {
            Answer::At(url) => self.elsewhere(&url).map(Some),
            Answer::Is(_) => Ok(None),
        }
    }

    /// The API of the router that this one named, with the same credentials.
    fn elsewhere(&self, url: &str) -> Result<Self> {
        let wrong = || {
            Failure::error(
                Exit::Failure,
                format!("{} sends this on to '{}', which is no URL", self.text, url.escape_debug()),
            )
        };
        let url: Uri = url.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(wrong());
        };
        // A token is not sent in the clear to whoever is named.
        if scheme != self.base.scheme_str().unwrap_or_default() {
            return Err(wrong());
        }
        let text = format!("{scheme}://{authority}");
        let base = text.parse().map_err(|_| wrong())?;
        Ok(Self { base, text, token: self.token.clone(), tls: self.tls.clone(), timeout: self.timeout })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Answer> {
        let mut request = self.builder(method, path)?.header(ACCEPT, "application/json");
        let body = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                serde_json::to_vec(body)?.into()
            }
        };
        let request = request.body(Full::new(body)).context("building the request")?;
        let answer = send(self.open().await?, request).await;
        let (status, location, bytes) = answer.map_err(|e| self.unreachable(&format!("{e:#}")))?;
        match location {
            Some(url) if status == StatusCode::TEMPORARY_REDIRECT => Ok(Answer::At(url)),
            _ if status.is_success() => Ok(Answer::Is(bytes)),
            _ => Err(self.refused(status, &bytes)),
        }
    }

    /// A request to the API, with all that every one has.
    fn builder(&self, method: Method, path: &str) -> Result<hyper::http::request::Builder> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base.path().trim_end_matches('/')))
            .header(HOST, self.base.authority().map_or("", |a| a.as_str()));
        if let Some(token) = &self.token {
            let mut value = hyper::header::HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| Failure::usage("the token file holds characters that no token has"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// A connection, with TLS where the URL says so.
    async fn open(&self) -> Result<Box<dyn Line>> {
        let stream = self.connect().await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let host = self.base.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
        let name =
            ServerName::try_from(host).map_err(|e| Failure::usage(format!("--api {}: {e}", self.text)))?;
        let secure = tls.connect(name, stream).await;
        Ok(Box::new(secure.map_err(|e| self.unreachable(&format!("TLS failed: {e}")))?))
    }

    async fn connect(&self) -> Result<TcpStream> {
        let host = self.base.host().unwrap_or_default().trim_matches(['[', ']']);
        let default = if self.tls.is_some() { 443 } else { 80 };
        let port = self.base.port_u16().unwrap_or(default);
        match tokio::time::timeout(CONNECT, TcpStream::connect((host, port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => Err(Failure::error(
                Exit::Unreachable,
                format!(
                    "no storage router is running at {}: start one with 'storagerouter serve' (or 'systemctl start \
                     storagerouter'), or say where it is with --api URL",
                    self.text
                ),
            )),
            Ok(Err(e)) => Err(self.unreachable(&e.to_string())),
            Err(_) => Err(self.unreachable("no connection within 10 seconds")),
        }
    }

    fn unreachable(&self, why: &str) -> anyhow::Error {
        Failure::error(
            Exit::Unreachable,
            format!("the storage router at {} can't be reached: {why}", self.text),
        )
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> anyhow::Error {
        let exit = match status.as_u16() {
            404 => Exit::NotFound,
            409 => Exit::Conflict,
            400 | 413 | 415 | 422 => Exit::Usage,
            _ => Exit::Failure,
        };
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => {
                let hint = problem.hint.map(|hint| format!("\n{hint}")).unwrap_or_default();
                Failure::error(exit, format!("{}{hint}", problem.detail))
            }
            // Not our API: a proxy, another program on the port.
            Err(_) => Failure::error(
                Exit::Failure,
                format!("{} answered {status}, and not as a storage router does: check --api", self.text),
            ),
        }
    }
}

/// What came of a request.
enum Answer {
    /// Its body.
    Is(Bytes),
    /// The URL to ask in place of this one.
    At(String),
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Option<String>, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let location =
            response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|e| anyhow::anyhow!("reading the answer: {e}"))?;
        anyhow::Ok((status, location, body.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            // What came before the end still counts.
            let answer = exchange.await;
            ended?;
            answer
        }
    }
}

fn connector(ca: &Path) -> Result<tokio_rustls::TlsConnector> {
    let bad = |e: &dyn std::fmt::Display| Failure::usage(format!("--api-ca-file {}: {e}", ca.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| bad(&e))? {
        roots.add(certificate.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    if roots.is_empty() {
        return Err(bad(&"it holds no certificate"));
    }
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}

/// A part of a path, with everything escaped that has a meaning there.
pub fn escape(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(api: &str) -> ApiArgs {
        ApiArgs {
            api: api.to_string(),
            token_file: None,
            api_ca_file: None,
            output: crate::cli::Output::Table,
        }
    }

    #[test]
    fn a_url_that_can_not_be_right_is_a_usage_error_that_names_it() {
        for url in ["127.0.0.1:8080", "ftp://x", "", "http://", "https://x:1"] {
            let error = Api::new(&args(url)).err().expect(url);
            assert_eq!(crate::failure::exit_of(&error), Exit::Usage, "{url}: {error}");
            assert!(error.to_string().contains(url), "{error}");
        }
    }

    #[tokio::test]
    async fn a_router_that_does_not_run_is_said_so_with_how_to_start_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let api = Api::new(&args(&url)).unwrap();
        let error = api.get::<serde_json::Value>("/api/v1/health").await.unwrap_err();
        assert_eq!(crate::failure::exit_of(&error), Exit::Unreachable);
        assert!(
            error.to_string().contains(&url) && error.to_string().contains("storagerouter serve"),
            "{error}"
        );
    }

    #[test]
    fn path_parts_are_escaped() {
        assert_eq!(escape("disk-1.a_b"), "disk-1.a_b");
        assert_eq!(escape("a/b c?%"), "a%2Fb%20c%3F%25");
    }
}
