use super::client::{Client, info, within};
use super::*;
use crate::nbd::TlsMode;
use crate::nbd::proto::{OPTION_MAGIC, opt, rep};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority, a server's and a client's certificate, as PEM files.
struct Papers(tempfile::TempDir);

impl Papers {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            std::fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self, tls: TlsMode, mutual: bool) -> Settings {
        Settings {
            tls,
            tls_cert: Some(self.path("server.pem")),
            tls_key: Some(self.path("server.key")),
            tls_client_ca: mutual.then(|| self.path("ca.pem")),
            ..Settings::default()
        }
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Sends STARTTLS and shakes hands, showing a certificate if `papers` says so.
async fn upgrade(
    mut c: Client<TcpStream>,
    ca: &Papers,
    shown: Option<&Papers>,
) -> std::io::Result<Client<TlsStream<TcpStream>>> {
    assert_eq!(c.option(opt::STARTTLS, &[]).await[0].kind, rep::ACK);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&ca.path("ca.pem"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some(papers) => {
            let key = std::fs::read(papers.path("client.key")).unwrap();
            let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
            builder.with_client_auth_cert(vec![certificate(&papers.path("client.pem"))], key).unwrap()
        }
    };
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = within(connector.connect(name, c.stream)).await?;
    Ok(Client { stream, extended: false, structured: false })
}

#[tokio::test]
async fn inside_tls_everything_works_and_nothing_said_before_counts() {
    let papers = Papers::new();
    for (mode, mutual) in [(TlsMode::Allow, false), (TlsMode::Require, false), (TlsMode::Require, true)] {
        let world = World::with(papers.settings(mode, mutual)).await;
        let mut c = Client::connect(world.address).await;
        if mode == TlsMode::Allow {
            c.structured().await;
        }
        let mut c = upgrade(c, &papers, mutual.then_some(&papers)).await.unwrap();
        assert_eq!(c.option(opt::STARTTLS, &[]).await[0].kind, rep::ERR_INVALID, "TLS in TLS");
        let replies = c.option(opt::LIST_META_CONTEXT, &super::client::meta("p/a", &[])).await;
        assert_eq!(replies[0].kind, rep::ERR_INVALID, "structured replies were forgotten");
        c.extended().await;
        assert_eq!(c.option(opt::GO, &info("p/a", &[])).await.last().unwrap().kind, rep::ACK);
        for length in [512usize, 4096, 100 << 10, 5 << 20] {
            let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            assert_eq!(c.write(0, 0, &data).await, 0);
            assert!(c.read(0, length).await.unwrap() == data);
        }
        c.send(0, 2, 0, 0, 0).await;
        assert!(c.rest().await.is_empty());
    }
}

#[tokio::test]
async fn required_tls_answers_nothing_in_plain_text() {
    let papers = Papers::new();
    let world = World::with(papers.settings(TlsMode::Require, false)).await;
    let mut c = Client::connect(world.address).await;
    for option in (2..=12).filter(|o| ![opt::ABORT, opt::STARTTLS].contains(o)) {
        let replies = c.option(option, &info("p/a", &[])).await;
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].kind, rep::ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(c.option(opt::ABORT, &[]).await[0].kind, rep::ACK);
    let mut c = Client::connect(world.address).await;
    c.send_option(opt::EXPORT_NAME, b"p/a").await;
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn allowed_tls_serves_plain_text_too() {
    let papers = Papers::new();
    let world = World::with(papers.settings(TlsMode::Allow, false)).await;
    assert_eq!(Client::open(world.address, "p/a", true).await.read(0, 512).await.unwrap(), [0; 512]);
}

#[tokio::test]
async fn a_client_without_a_certificate_of_ours_gets_nothing() {
    let (papers, strangers) = (Papers::new(), Papers::new());
    let world = World::with(papers.settings(TlsMode::Require, true)).await;
    for shown in [None, Some(&strangers)] {
        let c = Client::connect(world.address).await;
        // With TLS 1.3 the client learns of its refusal when it reads.
        let Ok(mut c) = upgrade(c, &papers, shown).await else { continue };
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 3, 0, 0, 0, 0]);
        let _ = c.stream.write_all(&bytes).await;
        assert!(c.rest().await.is_empty());
    }
    assert_eq!(world.metric("storagerouter_edge_requests_total{command=\"read\"}"), 0.0);
}

#[tokio::test]
async fn plain_text_behind_starttls_is_not_taken_for_something_said_inside() {
    let papers = Papers::new();
    let world = World::with(papers.settings(TlsMode::Allow, false)).await;
    let mut c = Client::connect(world.address).await;
    let mut bytes = Vec::new();
    for option in [opt::STARTTLS, opt::STRUCTURED_REPLY] {
        bytes.extend(OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend([0; 4]);
    }
    c.stream.write_all(&bytes).await.unwrap();
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn files_that_do_not_do_are_named() {
    let papers = Papers::new();
    let bind = |settings: Settings| async move {
        let settings = Settings { listen: "127.0.0.1:0".into(), ..settings };
        let clock = Arc::new(common::clock::SystemClock::new());
        let exports = Arc::new(Shelf::default());
        let bound = Server::bind(settings, exports, clock, &mut Registry::default()).await;
        bound.err().expect("it must be refused").to_string()
    };
    let good = papers.settings(TlsMode::Require, true);
    let said = bind(Settings { tls_cert: Some("nowhere.pem".into()), ..good.clone() }).await;
    assert!(said.contains("nbd.tls_cert") && said.contains("nowhere.pem"), "{said}");
    let said = bind(Settings { tls_key: Some(papers.path("server.pem")), ..good.clone() }).await;
    assert!(said.contains("nbd.tls_key"), "{said}");
    let said = bind(Settings { tls_key: Some(papers.path("client.key")), ..good.clone() }).await;
    assert!(said.contains("do not go together"), "{said}");
    let said = bind(Settings { tls_client_ca: Some(papers.path("client.key")), ..good }).await;
    assert!(said.contains("nbd.tls_client_ca"), "{said}");
}
