//! An HTTP front before the S3 server that does what networks and bad servers do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What happens to one request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It is passed on, and its reply back.
    None,
    /// The connection closes before the server sees it.
    LoseRequest,
    /// The server does it, and the connection closes without a reply.
    LoseReply,
    /// The reply breaks off in the middle.
    TruncateReply,
    /// Nothing, for ever.
    Hang,
    /// The server never sees it; it is answered with this status and S3 code.
    Answer(u16, &'static str),
    /// It is passed on without its condition.
    StripCondition,
}

/// The head of a request.
pub struct Head {
    pub method: String,
}

type Rule = Arc<Mutex<dyn FnMut(&Head) -> Fault + Send>>;

/// A running front; it ends with the value.
pub struct Front {
    endpoint: String,
    methods: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    pub async fn start(server: SocketAddr, rule: impl FnMut(&Head) -> Fault + Send + 'static) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), server, rule).await
    }

    pub async fn start_at(
        at: SocketAddr,
        server: SocketAddr,
        rule: impl FnMut(&Head) -> Fault + Send + 'static,
    ) -> Self {
        Self::run(at, server, None, Arc::new(Mutex::new(rule))).await
    }

    pub async fn start_tls(
        server: SocketAddr,
        chain: Vec<rustls::pki_types::CertificateDer<'static>>,
        key: rustls::pki_types::PrivateKeyDer<'static>,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        Self::run(([127, 0, 0, 1], 0).into(), server, tls, Arc::new(Mutex::new(|_: &Head| Fault::None))).await
    }

    async fn run(at: SocketAddr, server: SocketAddr, tls: Option<TlsAcceptor>, rule: Rule) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let methods = Arc::new(Mutex::new(Vec::new()));
        let seen = methods.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (tls, rule, seen) = (tls.clone(), rule.clone(), seen.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, server, rule, seen).await,
                            Err(_) => None,
                        },
                        None => serve(stream, server, rule, seen).await,
                    }
                });
            }
        });
        Self { endpoint, methods, task }
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Requests of the method so far.
    pub fn count(&self, method: &str) -> usize {
        self.methods.lock().unwrap().iter().filter(|m| *m == method).count()
    }

    /// Requests so far.
    pub fn total(&self) -> usize {
        self.methods.lock().unwrap().len()
    }
}

/// Serves one connection until a fault or the client ends it.
async fn serve(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    server: SocketAddr,
    rule: Rule,
    seen: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    loop {
        let (head, mut body) = read_head(&mut client).await?;
        let lines: Vec<&str> = head.split("\r\n").collect();
        let method = lines[0].split(' ').next()?.to_string();
        let value = |name: &str| {
            lines
                .iter()
                .filter_map(|l| l.split_once(": "))
                .find(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v)
        };
        let len: usize = value("content-length").map_or(0, |v| v.parse().unwrap());
        assert!(value("transfer-encoding").is_none(), "a put must be one body of known length");
        if value("expect").is_some() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        }
        let have = body.len();
        body.resize(len, 0);
        client.read_exact(&mut body[have..]).await.ok()?;
        seen.lock().unwrap().push(method.clone());
        let fault = (rule.lock().unwrap())(&Head { method: method.clone() });
        match fault {
            Fault::LoseRequest => return None,
            Fault::Hang => std::future::pending().await,
            Fault::Answer(status, code) => {
                let xml = format!(
                    "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>told by the front</Message></Error>"
                );
                let reply = format!(
                    "HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{xml}",
                    xml.len()
                );
                client.write_all(reply.as_bytes()).await.ok()?;
                continue;
            }
            _ => {}
        }
        let strip = matches!(fault, Fault::StripCondition);
        let passed: String = lines
            .iter()
            .filter(|l| {
                let name = l.split(':').next().unwrap_or_default().to_ascii_lowercase();
                !(matches!(name.as_str(), "connection" | "expect") || strip && name == "if-none-match")
            })
            .map(|l| format!("{l}\r\n"))
            .collect();
        let mut upstream = TcpStream::connect(server).await.ok()?;
        upstream.write_all(format!("{passed}Connection: close\r\n\r\n").as_bytes()).await.ok()?;
        upstream.write_all(&body).await.ok()?;
        let mut reply = Vec::new();
        upstream.read_to_end(&mut reply).await.ok()?;
        match fault {
            Fault::LoseReply => return None,
            Fault::TruncateReply => {
                client.write_all(&reply[..reply.len() - reply.len() / 3]).await.ok()?;
                return None;
            }
            // The server says `Connection: close`, so this is the last reply.
            _ => {
                client.write_all(&reply).await.ok()?;
                client.shutdown().await.ok()?;
                return None;
            }
        }
    }
}

/// The head of a request without its empty line, and what was read beyond it.
async fn read_head(client: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut data = Vec::new();
    loop {
        if let Some(end) = data.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = data.split_off(end + 4);
            data.truncate(end);
            return Some((String::from_utf8(data).ok()?, rest));
        }
        let mut chunk = [0; 16 << 10];
        match client.read(&mut chunk).await.ok()? {
            0 => return None,
            n => data.extend_from_slice(&chunk[..n]),
        }
    }
}
