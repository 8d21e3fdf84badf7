//! A daemon and its clients over pipes, sockets and TLS.

use asd::AsdClient;
use asd::metrics::Metrics;
use asd::service::Service;
use asd::store::{Settings, Store};
use asd::transport::{Address, Dial, Door, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use common::clock::SystemClock;
use common::osd::{Assert, BackendId, Call, Changes, KeyRange, OsdId, Value};
use common::sim::{SimDisk, SimTable};
use common::{Clock, ErrorKind, Osd};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

fn call() -> Call {
    Call::client(Duration::from_secs(60))
}

async fn store() -> Arc<Store> {
    let (disk, table) = (Arc::new(SimDisk::new()), Arc::new(SimTable::new()));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    Store::format(&*disk, &*table, &*clock, 1 << 20).await.unwrap();
    let settings =
        Settings { capacity: Some(64 << 20), table_reserve: 1 << 20, scrub_rate: 0, ..Settings::default() };
    Arc::new(Store::open(settings, disk, table, clock).await.unwrap().0)
}

/// Pipes to a service, that can be cut.
struct Pipes {
    service: Service,
    open: Mutex<Option<tokio::task::JoinSet<()>>>,
}

impl Pipes {
    fn new(store: Arc<Store>) -> Arc<Pipes> {
        let service = Service::new(store, Default::default(), Metrics::default());
        Arc::new(Pipes { service, open: Mutex::new(Some(Default::default())) })
    }
}

#[async_trait]
impl Dial for Pipes {
    async fn dial(&self) -> std::io::Result<Stream> {
        let (here, there) = tokio::io::duplex(64 << 10);
        let service = self.service.clone();
        match &mut *self.open.lock() {
            None => return Err(std::io::ErrorKind::ConnectionRefused.into()),
            Some(tasks) => tasks.spawn(async move { service.serve(Stream::any(there)).await }),
        };
        Ok(Stream::any(here))
    }

    fn describe(&self) -> String {
        "a pipe".into()
    }
}

fn client(dial: Arc<dyn Dial>, osd: Option<OsdId>, backend: Option<BackendId>) -> AsdClient {
    AsdClient::new(dial, osd, backend, Default::default(), Arc::new(SystemClock::new()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_under_way_and_each_gets_its_answer() {
    let store = store().await;
    let client = Arc::new(client(Pipes::new(store.clone()), Some(store.id()), None));
    let value = |n: usize| Bytes::from(vec![n as u8; n * 700]);
    let tasks = (0..200).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let key = Bytes::from(format!("k{n:03}"));
            let changes =
                Changes::new().assert(Assert::Absent(key.clone())).set(key.clone(), Value::new(value(n)));
            client.apply(call(), changes.clone()).await.unwrap();
            client.apply(call(), changes).await.unwrap();
            assert_eq!(client.get(call(), &key).await.unwrap().unwrap().bytes, value(n));
            let len = value(n).len() as u64;
            let part = client.get_range(call(), &key, len / 2..len).await.unwrap().unwrap();
            assert_eq!(part, value(n).slice(len as usize / 2..));
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let page = client.range(call(), KeyRange::all(), 150).await.unwrap();
    assert_eq!((page.keys.len(), page.next), (150, Some("k150".into())));
    let some = client.multi_get(call(), &["k001".into(), "none".into(), "k002".into()]).await.unwrap();
    assert_eq!(
        some.iter().map(|v| v.as_ref().map(|v| v.bytes.len())).collect::<Vec<_>>(),
        [Some(700), None, Some(1400)]
    );
    let verified =
        client.verify(Call::maintenance(Duration::from_secs(60)), KeyRange::all(), 500).await.unwrap();
    assert_eq!((verified.keys, verified.damaged.len(), verified.next), (200, 0, None));
    let status = client.status(call()).await.unwrap();
    assert_eq!((status.id, status.keys), (store.id(), 200));
    assert!(status.apply.count >= 400 && status.apply.p50 <= status.apply.p99);
    let conflict =
        client.apply(call(), Changes::new().assert(Assert::Present("none".into()))).await.unwrap_err();
    assert!(conflict.kind == ErrorKind::Conflict && conflict.message().contains("'none'"), "{conflict}");
    assert_eq!(client.get_range(call(), b"k001", 0..701).await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn another_disk_or_another_backend_is_refused_by_name() {
    let store = store().await;
    let pipes = Pipes::new(store.clone());
    let other = client(pipes.clone(), Some(OsdId(7)), None);
    let error = other.status(call()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message().contains(&store.id().to_string()), "{error}");
    let (mine, yours) = (BackendId(1), BackendId(2));
    let a = client(pipes.clone(), Some(store.id()), Some(mine));
    let denied = a.apply(call(), Changes::new().set("k", Value::new("v"))).await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::Denied);
    a.claim(call(), None, Some(mine)).await.unwrap();
    a.apply(call(), Changes::new().set("k", Value::new("v"))).await.unwrap();
    let b = client(pipes, None, Some(yours));
    assert_eq!(b.get(call(), b"k").await.unwrap_err().kind, ErrorKind::Denied);
    let taken = b.claim(call(), None, Some(yours)).await.unwrap_err();
    assert!(taken.kind == ErrorKind::Conflict && taken.message().contains(&mine.to_string()), "{taken}");
    assert_eq!(b.status(call()).await.unwrap().claimed_by, Some(mine));
}

#[tokio::test]
async fn a_broken_connection_is_made_anew_and_a_request_without_time_is_not_done() {
    let store = store().await;
    let pipes = Pipes::new(store.clone());
    let client = client(pipes.clone(), Some(store.id()), None);
    client.apply(call(), Changes::new().set("k", Value::new("v"))).await.unwrap();
    // The daemon goes away.
    drop(pipes.open.lock().take());
    let clock = SystemClock::new();
    let get = || client.get(call(), b"k");
    while get().await.is_ok() {
        clock.sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(get().await.unwrap_err().kind, ErrorKind::Unavailable);
    *pipes.open.lock() = Some(Default::default());
    let begin = clock.now();
    while let Err(error) = get().await {
        assert!(clock.now() - begin < Duration::from_secs(60), "{error}");
        clock.sleep(Duration::from_millis(5)).await;
    }
    let none = Call::client(Duration::ZERO);
    let late = client.apply(none, Changes::new().set("late", Value::new("v"))).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::Unavailable);
}

fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(vec!["asd.test".to_owned()]).unwrap();
    let cert = made.cert.der().clone();
    let key = || rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let roots = Arc::new(roots);
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![cert.clone()], key())
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key())
        .unwrap();
    (Arc::new(server), Arc::new(client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_over_unix_sockets_tcp_and_mutual_tls() {
    let store = store().await;
    let service = Service::new(store.clone(), Default::default(), Metrics::default());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("asd.sock");
    let tcp = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (plain, guarded) = (tcp().await, tcp().await);
    let (server, with) = tls();
    let name = rustls_pki_types::ServerName::try_from("asd.test").unwrap();
    let at = |listener: &tokio::net::TcpListener| listener.local_addr().unwrap().to_string();
    let addresses = [
        Address::Unix(socket.clone()),
        Address::Tcp(at(&plain), None),
        Address::Tcp(at(&guarded), Some((with, name))),
    ];
    let stranger = Address::Tcp(at(&guarded), None);
    let doors = [
        Door::Unix(tokio::net::UnixListener::bind(&socket).unwrap()),
        Door::Tcp(plain, None),
        Door::Tcp(guarded, Some(tokio_rustls::TlsAcceptor::from(server))),
    ];
    let (_run, stop) = tokio::sync::watch::channel(false);
    for door in doors {
        let (service, stop) = (service.clone(), stop.clone());
        tokio::spawn(async move { service.listen(door, stop).await });
    }
    for (n, address) in addresses.into_iter().enumerate() {
        let client = client(Arc::new(address), Some(store.id()), None);
        let value = Bytes::from(vec![n as u8; 3 << 18]);
        client.apply(call(), Changes::new().set("k", Value::new(value.clone()))).await.unwrap();
        assert_eq!(client.get(call(), b"k").await.unwrap().unwrap().bytes, value);
    }
    let short = Call::client(Duration::from_secs(60));
    let error = client(Arc::new(stranger), None, None).status(short).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}
