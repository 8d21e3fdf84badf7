use super::*;
use axum::routing::get;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

const REQUEST: &[u8] = b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<()>>,
    /// Lets `/slow` answer.
    go: Arc<Semaphore>,
}

async fn start(tls: Option<Arc<ServerConfig>>) -> Server {
    let go = Arc::new(Semaphore::new(0));
    let gate = go.clone();
    let app = Router::new().route(
        "/slow",
        get(move || async move {
            gate.acquire().await.unwrap().forget();
            "answer"
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(serve(listener, app, tls, async {
        let _ = stopped.await;
    }));
    Server { address, stop, ended, go }
}

#[tokio::test]
async fn a_request_that_runs_at_the_end_is_answered() {
    let server = start(None).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    // A second request that was answered shows that the first one was read.
    let mut other = TcpStream::connect(server.address).await.unwrap();
    server.go.add_permits(1);
    other.write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    other.read_to_end(&mut Vec::new()).await.unwrap();
    let mut reply = Vec::new();
    server.stop.send(()).unwrap();
    stream.read_to_end(&mut reply).await.unwrap();
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("answer"), "{reply}");
    server.ended.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn tls_is_spoken_when_asked_for_and_plain_text_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let settings = crate::Settings { tls_cert: Some(cert), tls_key: Some(key), ..crate::Settings::default() };
    let server = start(settings.tls().unwrap()).await;
    server.go.add_permits(8);

    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    assert!(reply.starts_with(b"HTTP/1.1 200") && reply.ends_with(b"answer"));

    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(REQUEST).await.unwrap();
    let mut reply = Vec::new();
    // Either an alert and the end, or a reset: never an answer.
    let _ = plain.read_to_end(&mut reply).await;
    assert!(!reply.windows(6).any(|w| w == b"answer"));
    server.stop.send(()).unwrap();
    server.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn garbage_ends_its_connection_and_nothing_else() {
    let server = start(None).await;
    server.go.add_permits(8);
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"NBDMAGICIHAVEOPT\r\n\r\n", &[0xff; 100_000]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    assert!(reply.starts_with(b"HTTP/1.1 200"));
    server.stop.send(()).unwrap();
    server.ended.await.unwrap().unwrap();
}
