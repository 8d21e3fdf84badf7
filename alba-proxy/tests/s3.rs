//! The `s3` store against a real S3 server (moto), directly and through a front that loses
//! requests and replies, answers errors, ignores conditions, hangs, and speaks TLS.

#[path = "s3/front.rs"]
mod front;
#[path = "s3/moto.rs"]
mod moto;

use alba_proxy::{BackendSpec, Metrics, S3Spec, attach, open};
use bytes::Bytes;
use common::clock::SystemClock;
use common::object::{ObjectStore, Precondition, list_all};
use common::sim::SimObjectStore;
use common::{ErrorKind, Result};
use front::{Fault, Front};
use moto::Moto;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

struct World {
    dir: tempfile::TempDir,
    moto: Moto,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("keys"), "aws_access_key_id = AK\naws_secret_access_key = SK\n")
            .unwrap();
        let moto = Moto::start();
        moto.create_bucket("bkt").await;
        Self { dir, moto }
    }

    fn spec(&self, endpoint: &str) -> S3Spec {
        spec_with_keys(self.dir.path(), endpoint)
    }

    fn direct(&self) -> S3Spec {
        self.spec(&self.moto.endpoint())
    }
}

fn spec_with_keys(dir: &Path, endpoint: &str) -> S3Spec {
    S3Spec {
        endpoint: Some(endpoint.into()),
        prefix: Some("some/prefix".into()),
        credentials_file: Some(dir.join("keys")),
        ..S3Spec::new("bkt")
    }
}

async fn store(spec: S3Spec) -> Arc<dyn ObjectStore> {
    try_store(spec).await.unwrap()
}

async fn try_store(spec: S3Spec) -> Result<Arc<dyn ObjectStore>> {
    open(&BackendSpec::S3(spec), Arc::new(SystemClock::new()), &Metrics::unregistered()).await
}

async fn try_attach(spec: S3Spec) -> Result<Arc<dyn ObjectStore>> {
    attach(&BackendSpec::S3(spec), Arc::new(SystemClock::new()), &Metrics::unregistered()).await
}

fn body(text: &str) -> Bytes {
    Bytes::from(text.to_string())
}

/// One random operation, as text: what it returned, or the kind of its error.
async fn step(store: &dyn ObjectStore, random: &mut fastrand::Rng) -> (String, Result<String, ErrorKind>) {
    const KEYS: &[&str] =
        &["a-", "a.b", "a/x", "a/y", "a/b/c", "a", "a0", "Z", "b/s/01/1", "b/s/01/2", "b/m/ff"];
    const PREFIXES: &[&str] = &["", "a", "a/", "a/b", "b/", "b/s/", "b/s/0", "zz"];
    const AFTER: &[Option<&str>] =
        &[None, None, Some("a"), Some("a/"), Some("a/b/"), Some("b/s/01/1"), Some("b/s/")];
    let key = KEYS[random.usize(..KEYS.len())];
    let len = random.usize(0..3000);
    let data = Bytes::from(std::iter::repeat_with(|| random.u8(..)).take(len).collect::<Vec<_>>());
    let from = random.u64(0..2500);
    let to = from + random.u64(0..800);
    let prefix = PREFIXES[random.usize(..PREFIXES.len())];
    let after = AFTER[random.usize(..AFTER.len())];
    let (delimiter, limit, which) = (random.bool(), random.usize(1..6), random.u8(0..20));
    let (told, outcome) = match which {
        0..=3 => {
            (format!("put {key}"), store.put(key, data, Precondition::IfAbsent).await.map(|()| String::new()))
        }
        4..=5 => {
            (format!("replace {key}"), store.put(key, data, Precondition::None).await.map(|()| String::new()))
        }
        6..=7 => (format!("get {key}"), store.get(key).await.map(|d| format!("{d:?}"))),
        8..=10 => (
            format!("get {key} {from}..{to}"),
            store.get_range(key, from..to).await.map(|d| format!("{d:?}")),
        ),
        11..=12 => (format!("head {key}"), store.head(key).await.map(|l| format!("{l:?}"))),
        13..=14 => (format!("delete {key}"), store.delete(key).await.map(|()| String::new())),
        _ => (
            format!("list {prefix} {after:?} {delimiter} {limit}"),
            store.list(prefix, after, delimiter, limit).await.map(|l| format!("{l:?}")),
        ),
    };
    (told, outcome.map_err(|e| e.kind))
}

#[tokio::test]
async fn behaves_as_the_simulated_store_and_keeps_to_its_prefix() {
    let world = World::new().await;
    let neighbour = store(S3Spec { prefix: Some("some/prefixed".into()), ..world.direct() }).await;
    neighbour.put("untouched", body("x"), Precondition::IfAbsent).await.unwrap();
    let real = store(world.direct()).await;
    let model = SimObjectStore::new(0);
    for seed in 0..4 {
        let (mut ours, mut models) = (fastrand::Rng::with_seed(seed), fastrand::Rng::with_seed(seed));
        for n in 0..120 {
            let (told, seen) = step(real.as_ref(), &mut ours).await;
            let (_, expected) = step(&model, &mut models).await;
            assert_eq!(seen, expected, "seed {seed} operation {n}: {told}");
        }
    }
    let keys: Vec<_> = list_all(real.as_ref(), "").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(keys, model.keys());
    assert_eq!(neighbour.get("untouched").await.unwrap(), "x");
}

#[tokio::test]
async fn a_good_server_is_attached_and_left_as_it_was() {
    let world = World::new().await;
    let attached = try_attach(world.direct()).await.unwrap();
    assert_eq!(list_all(attached.as_ref(), "").await.unwrap(), []);
    let told = attached.describe();
    assert!(
        told.contains(&world.moto.endpoint()) && told.contains("bkt") && told.contains("some/prefix"),
        "{told}"
    );
    assert!(!told.contains("WARNING") && !told.contains("SK"), "{told}");
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_refused_unless_there_is_a_single_writer() {
    let world = World::new().await;
    let front = Front::start(world.moto.address(), |_| Fault::StripCondition).await;
    let error = try_attach(world.spec(&front.endpoint())).await.err().expect("it was accepted");
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    assert!(
        error.message().contains("single_writer") && error.message().contains("If-None-Match"),
        "{error}"
    );

    let alone = try_attach(S3Spec { single_writer: true, ..world.spec(&front.endpoint()) }).await.unwrap();
    assert!(alone.describe().contains("WARNING"), "{}", alone.describe());
    alone.put("k", body("first"), Precondition::IfAbsent).await.unwrap();
    let second = alone.put("k", body("second"), Precondition::IfAbsent).await;
    assert_eq!(second.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(alone.get("k").await.unwrap(), "first");
}

#[tokio::test]
async fn a_put_whose_reply_was_lost_and_that_meets_its_own_bytes_is_a_success() {
    let world = World::new().await;
    for single_writer in [false, true] {
        let mut lose = 2;
        let front = Front::start(world.moto.address(), move |head| {
            if head.method == "PUT" && lose > 0 {
                lose -= 1;
                return Fault::LoseReply;
            }
            Fault::None
        })
        .await;
        let spec = S3Spec {
            single_writer,
            prefix: Some(format!("lost-{single_writer}")),
            ..world.spec(&front.endpoint())
        };
        let store = store(spec).await;
        store.put("k", body("mine"), Precondition::IfAbsent).await.unwrap();
        assert_eq!(store.get("k").await.unwrap(), "mine");
        assert!(front.count("PUT") >= if single_writer { 1 } else { 2 });
        let again = store.put("k", body("mine"), Precondition::IfAbsent).await;
        assert_eq!(
            again.unwrap_err().kind,
            ErrorKind::Conflict,
            "a put without lost replies does not look back"
        );
    }
}

#[tokio::test]
async fn a_put_whose_request_was_lost_and_that_meets_other_bytes_is_a_conflict() {
    let world = World::new().await;
    let mut lose = 1;
    let front = Front::start(world.moto.address(), move |head| {
        if head.method == "PUT" && lose > 0 {
            lose -= 1;
            return Fault::LoseRequest;
        }
        Fault::None
    })
    .await;
    store(world.direct()).await.put("k", body("theirs"), Precondition::IfAbsent).await.unwrap();
    let store = store(world.spec(&front.endpoint())).await;
    let error = store.put("k", body("mine"), Precondition::IfAbsent).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    assert_eq!(store.get("k").await.unwrap(), "theirs");
    assert_eq!(front.count("PUT"), 2);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_given_up_at_the_deadline() {
    let world = World::new().await;
    let mut busy = 4;
    let front = Front::start(world.moto.address(), move |_| {
        busy -= 1;
        match busy {
            3 => Fault::Answer(503, "SlowDown"),
            2 => Fault::Answer(500, "InternalError"),
            1 => Fault::LoseRequest,
            _ => Fault::None,
        }
    })
    .await;
    let patient = store(world.spec(&front.endpoint())).await;
    patient.put("k", body("x"), Precondition::IfAbsent).await.unwrap();
    assert_eq!(front.count("PUT"), 4);

    let front = Front::start(world.moto.address(), |_| Fault::Answer(503, "SlowDown")).await;
    let store = store(S3Spec { deadline_seconds: Some(1), ..world.spec(&front.endpoint()) }).await;
    let error = store.get("k").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(
        error.message().contains("given up after 1 s") && error.message().contains("SlowDown"),
        "{error}"
    );
    assert!(front.count("GET") > 1);
}

#[tokio::test]
async fn a_reply_that_breaks_off_or_hangs_is_read_again() {
    let world = World::new().await;
    let mut number = 0;
    let front = Front::start(world.moto.address(), move |head| {
        if head.method != "GET" {
            return Fault::None;
        }
        number += 1;
        match number {
            1 => Fault::TruncateReply,
            2 => Fault::Hang,
            _ => Fault::None,
        }
    })
    .await;
    let store = store(S3Spec { deadline_seconds: Some(4), ..world.spec(&front.endpoint()) }).await;
    let data = Bytes::from(vec![42; 100_000]);
    store.put("k", data.clone(), Precondition::IfAbsent).await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), data);
    assert_eq!(front.count("GET"), 3);
}

#[tokio::test]
async fn a_server_that_is_down_and_comes_back_serves_again() {
    let world = World::new().await;
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let store = store(S3Spec { deadline_seconds: Some(1), ..world.spec(&format!("http://{address}")) }).await;
    let error = store.put("k", body("x"), Precondition::IfAbsent).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("nothing listens") && error.message().contains("bkt"), "{error}");
    let _front = Front::start_at(address, world.moto.address(), |_| Fault::None).await;
    store.put("k", body("x"), Precondition::IfAbsent).await.unwrap();
}

#[tokio::test]
async fn a_missing_bucket_is_told_and_never_an_absent_object() {
    let world = World::new().await;
    let store = store(S3Spec { bucket: "nowhere".into(), ..world.direct() }).await;
    let put = store.put("k", body("x"), Precondition::IfAbsent).await.map(|()| None);
    let outcomes = [
        put,
        store.get("k").await.map(|_| None),
        store.head("k").await,
        store.list("", None, false, 10).await.map(|_| None),
        store.delete("k").await.map(|()| None),
    ];
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message().contains("bucket 'nowhere' does not exist"), "{error}");
    }
}

#[tokio::test]
async fn wrong_keys_and_a_wrong_clock_are_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys"), "aws_access_key_id = AK\naws_secret_access_key = SK\n").unwrap();
    for (code, advice) in [
        ("InvalidAccessKeyId", "check the access key in credentials file"),
        ("SignatureDoesNotMatch", "check the secret key in credentials file"),
        ("RequestTimeTooSkewed", "this machine's clock differs"),
    ] {
        let front = Front::start(([127, 0, 0, 1], 9).into(), move |_| Fault::Answer(403, code)).await;
        let error = try_attach(spec_with_keys(dir.path(), &front.endpoint())).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
        assert!(error.message().contains(advice) && error.message().contains("'bkt'"), "{error}");
        assert!(!error.message().contains("SK"), "{error}");
        assert_eq!(front.total(), 1, "a request that can't succeed was repeated");
    }
}

struct Certificates {
    ca: PathBuf,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
}

fn certificates(dir: &Path, name: &str, host: &str, until: i32) -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let ca_key = KeyPair::generate().unwrap();
    let ca_file = dir.join(format!("{name}.pem"));
    std::fs::write(&ca_file, params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let mut server = CertificateParams::new(vec![host.to_string()]).unwrap();
    server.not_before = date_time_ymd(2000, 1, 1);
    server.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let chain = vec![server.signed_by(&key, &issuer).unwrap().der().clone()];
    Certificates { ca: ca_file, chain, key: key.serialize_der().try_into().unwrap() }
}

#[tokio::test]
async fn tls_is_checked_against_the_given_authority_and_each_fault_is_told() {
    let world = World::new().await;
    let dir = world.dir.path();
    let good = certificates(dir, "good", "127.0.0.1", 2900);
    let other = certificates(dir, "other", "127.0.0.1", 2900);
    let old = certificates(dir, "old", "127.0.0.1", 2001);
    let elsewhere = certificates(dir, "elsewhere", "elsewhere.example", 2900);
    let (good_ca, old_ca, elsewhere_ca) = (good.ca.clone(), old.ca.clone(), elsewhere.ca.clone());
    let mut fronts = Vec::new();
    for c in [good, old, elsewhere] {
        fronts.push(Front::start_tls(world.moto.address(), c.chain, c.key).await);
    }
    let at = |n: usize, ca: Option<&PathBuf>| S3Spec {
        ca_file: ca.cloned(),
        deadline_seconds: Some(3),
        ..world.spec(&fronts[n].endpoint())
    };
    let fine = try_attach(at(0, Some(&good_ca))).await.unwrap();
    let data = Bytes::from(vec![7; 3 << 20]);
    fine.put("k", data.clone(), Precondition::IfAbsent).await.unwrap();
    assert_eq!(fine.get("k").await.unwrap(), data);

    for (spec, advice) in [
        (at(0, Some(&other.ca)), "not signed by any of the ca_file"),
        (at(0, None), "no ca_file is set"),
        (at(1, Some(&old_ca)), "has expired"),
        (at(2, Some(&elsewhere_ca)), "another host name"),
    ] {
        let error = try_attach(spec).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
        assert!(error.message().contains(advice), "{advice}: {error}");
    }
    let plain = world.spec(&world.moto.endpoint().replace("http://", "https://"));
    let error = try_attach(S3Spec { ca_file: Some(good_ca.clone()), ..plain }).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn sixteen_routers_that_race_for_one_key_have_one_winner() {
    let world = World::new().await;
    for round in 0..5 {
        let mut racers = tokio::task::JoinSet::new();
        for n in 0..16 {
            let spec = world.direct();
            racers.spawn(async move {
                let data = Bytes::from(vec![n; 2000]);
                (n, store(spec).await.put(&format!("race/{round}"), data, Precondition::IfAbsent).await)
            });
        }
        let mut winners = Vec::new();
        while let Some(outcome) = racers.join_next().await {
            match outcome.unwrap() {
                (n, Ok(())) => winners.push(n),
                (_, Err(e)) => assert_eq!(e.kind, ErrorKind::Conflict, "{e}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let stored = store(world.direct()).await.get(&format!("race/{round}")).await.unwrap();
        assert_eq!(stored, vec![winners[0]; 2000]);
    }
}

#[tokio::test]
async fn requests_are_counted() {
    let world = World::new().await;
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let mut busy = 2;
    let front = Front::start(world.moto.address(), move |_| {
        busy -= 1;
        if busy > 0 { Fault::Answer(503, "SlowDown") } else { Fault::None }
    })
    .await;
    let spec = BackendSpec::S3(world.spec(&front.endpoint()));
    let store = open(&spec, Arc::new(SystemClock::new()), &metrics).await.unwrap();
    store.put("k", body("12345"), Precondition::IfAbsent).await.unwrap();
    store.get("nothing").await.unwrap_err();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"storagerouter_alba_proxy_requests_total{store="s3",operation="put",outcome="ok"} 1"#,
        r#"storagerouter_alba_proxy_requests_total{store="s3",operation="get",outcome="refused"} 1"#,
        r#"storagerouter_alba_proxy_transferred_bytes_total{store="s3",direction="put"} 5"#,
        r#"storagerouter_alba_proxy_retries_total{store="s3"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// Bounds what would otherwise hang a test.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("{what} took a minute"))
}
