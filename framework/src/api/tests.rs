//! Over the router of the API, with the simulated twins below it. Everything from
//! `a_vpool_and_a_vdisk_over_http` on needs a volume driver that works.

use super::*;
use crate::types::{Health, HealthLevel, LogLevel, Problem, Ready, Vdisk, VdiskList, VdiskState, Vpool};
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use common::sim::{SimClock, SimDisk, SimKv, SimObjectStore, SimTable};
use common::{Error, Exports, ObjectStore};
use http_body_util::BodyExt;
use objectrouter::{OpenStore, OpenedStore, RouterExports, Stores};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;
use tower_service::Service;

struct Api {
    app: axum::Router,
    router: Arc<objectrouter::Router>,
}

struct Reply {
    status: u16,
    kind: String,
    body: Bytes,
}

impl Reply {
    fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The reply as the problem that it must be.
    fn problem(&self) -> Problem {
        assert_eq!(self.kind, "application/problem+json", "{:?}", self.body);
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.kind, format!("urn:storagerouter:error:{}", problem.code));
        assert!(!problem.detail.is_empty() && !problem.title.is_empty());
        problem
    }
}

/// A router that knows no other one.
fn alone() -> objectrouter::Membership {
    objectrouter::Membership {
        name: "a".parse().unwrap(),
        write_buffer: objectrouter::WriteBuffer { device: common::VolumeId(1), boot: "b".into() },
        founder: true,
        domains: Vec::new(),
        recovery_domains: Vec::new(),
        lease: std::time::Duration::from_secs(2),
        dial: Arc::new(|_| Err(Error::unavailable("there is nobody"))),
        patience: Default::default(),
    }
}

impl Api {
    async fn start(token: Option<&str>) -> Self {
        let mut registry = Registry::default();
        let clock = Arc::new(SimClock::new(1));
        let settings = volumedriver::Settings { journal_mib: 32, segment_mib: 4, ..Default::default() };
        let disk = Arc::new(SimDisk::new());
        let table = Arc::new(SimTable::new());
        let driver = volumedriver::Driver::start(settings, disk, table, clock.clone(), &mut registry);
        let driver = driver.await.unwrap();
        let store = SimObjectStore::new(1);
        let open: OpenStore = Arc::new(move |spec: Value| {
            let store = store.clone();
            Box::pin(async move {
                if spec["kind"] != "sim" {
                    return Err(Error::invalid(format!("backend: unknown kind {}", spec["kind"])));
                }
                store.head("vpool").await?;
                let description = store.describe();
                Ok(OpenedStore { store: Arc::new(store), description, warning: None })
            })
        });
        let stores = Stores { open: open.clone(), attach: open };
        let settings = objectrouter::Settings::default();
        let kv = Arc::new(SimKv::new());
        let router = objectrouter::Router::start(kv, alone(), driver, stores, clock, settings, &mut registry)
            .await
            .unwrap();
        let filter = Arc::new(Mutex::new(String::from("info")));
        let kept = filter.clone();
        let state = State {
            router: router.clone(),
            metrics: Arc::new(registry),
            log: LogFilter {
                get: Arc::new(move || kept.lock().clone()),
                set: Arc::new(move |text| {
                    if text.contains("==") {
                        return Err(Error::invalid(format!("filter '{text}' can't be read")));
                    }
                    *filter.lock() = text.to_string();
                    Ok(())
                }),
            },
            cluster: ClusterControl {
                status: Arc::new(|| Box::pin(async { Err(Error::unavailable("it has stopped")) })),
                leave: Arc::new(|member, _| {
                    Box::pin(async move {
                        match member {
                            None => Err(Error::conflict("it is alone")),
                            Some(7) => Ok(()),
                            Some(member) => Err(Error::not_found(format!("there is no member {member}"))),
                        }
                    })
                }),
                backup: Arc::new(|path| {
                    Box::pin(
                        async move { Ok(types::BackedUp { path, group: "0".into(), revision: 1, bytes: 2 }) },
                    )
                }),
            },
            version: types::Version {
                product: "storagerouter".into(),
                version: "0.0.0".into(),
                revision: None,
                format: 1,
                node: router.node().to_string(),
            },
            token: token.map(|t| Token::new(t).unwrap()),
            nbd_uri: Some("nbd://127.0.0.1:10809/{vpool}/{vdisk}".into()),
            nbd_unix: Some("/run/a b/nbd?.sock".into()),
            edge: vec!["127.0.0.1:10810".into(), "unix:/run/edge.sock".into()],
        };
        Api { app: app(state), router }
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response: Response<_> = self.app.clone().call(request).await.unwrap();
        let kind = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_string());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Reply { status, kind: kind.unwrap_or_default(), body }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let request = Request::builder().method(method).uri(path);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string().into()),
            None => request.body(Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, None).await
    }

    async fn vpool(&self, name: &str) -> Reply {
        let body = json!({"name": name, "backend": {"kind": "sim"}});
        self.ask("POST", "/api/v1/vpools", Some(body)).await
    }

    async fn vdisk(&self, name: &str) -> Reply {
        let body = json!({"name": name, "vpool": "p", "size_bytes": 1u64 << 30});
        self.ask("POST", "/api/v1/vdisks", Some(body)).await
    }
}

#[test]
fn the_document_names_every_route() {
    let document = serde_json::to_value(openapi()).unwrap();
    let mut have = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            have.push(format!("{method} {path}"));
        }
    }
    have.sort();
    let mut want = [
        "get /api/v1/vpools",
        "post /api/v1/vpools",
        "get /api/v1/vpools/{name}",
        "delete /api/v1/vpools/{name}",
        "get /api/v1/routers",
        "get /api/v1/routers/{name}",
        "get /api/v1/vdisks",
        "post /api/v1/vdisks",
        "get /api/v1/vdisks/{vpool}/{name}",
        "patch /api/v1/vdisks/{vpool}/{name}",
        "delete /api/v1/routers/{name}",
        "delete /api/v1/vdisks/{vpool}/{name}",
        "post /api/v1/vdisks/{vpool}/{name}/drain",
        "post /api/v1/vdisks/{vpool}/{name}/scrub",
        "get /api/v1/vdisks/{vpool}/{name}/export",
        "post /api/v1/vdisks/{vpool}/{name}/force",
        "post /api/v1/vdisks/{vpool}/{name}/import",
        "get /api/v1/vdisks/{vpool}/{name}/snapshots",
        "post /api/v1/vdisks/{vpool}/{name}/snapshots",
        "get /api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}",
        "patch /api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}",
        "delete /api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}",
        "post /api/v1/vdisks/{vpool}/{name}/clone",
        "post /api/v1/vdisks/{vpool}/{name}/move",
        "post /api/v1/vdisks/{vpool}/{name}/rollback",
        "post /api/v1/vdisks/{vpool}/{name}/template",
        "post /api/v1/routers/{name}/drain",
        "post /api/v1/routers/{name}/resume",
        "post /api/v1/snapshots",
        "get /api/v1/cluster",
        "post /api/v1/cluster/leave",
        "post /api/v1/cluster/backup",
        "get /api/v1/health",
        "get /api/v1/log-level",
        "put /api/v1/log-level",
        "get /api/v1/version",
        "get /api/v1/openapi.json",
        "get /openapi.json",
        "get /healthz",
        "get /readyz",
        "get /metrics",
    ];
    want.sort_unstable();
    assert_eq!(have, want);
}

#[test]
fn the_document_has_every_schema_that_it_refers_to() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(String::from));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let document = serde_json::to_value(openapi()).unwrap();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.iter().any(|r| r.ends_with("/Vdisk")), "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_router_is_healthy_ready_and_measured() {
    let api = Api::start(None).await;
    assert_eq!(api.get("/healthz").await.status, 200);
    assert!(api.get("/readyz").await.json::<Ready>().ready);
    let health: Health = api.get("/api/v1/health").await.json();
    assert_eq!((health.level, health.items.len()), (HealthLevel::Ok, 0));
    assert_eq!(api.get("/api/v1/version").await.json::<types::Version>().node, api.router.node().as_str());
    let metrics = api.get("/metrics").await;
    assert!(metrics.kind.starts_with("application/openmetrics-text"));
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("storagerouter_objectrouter_vdisks 0") && text.ends_with("# EOF\n"), "{text}");
    for path in ["/openapi.json", "/api/v1/openapi.json"] {
        assert!(api.get(path).await.json::<Value>()["openapi"].as_str().unwrap().starts_with("3.1"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_level_is_set_or_refused() {
    let api = Api::start(None).await;
    let set = json!({"filter": "info,volumedriver=debug"});
    let reply = api.ask("PUT", "/api/v1/log-level", Some(set)).await;
    assert_eq!(reply.json::<LogLevel>().filter, "info,volumedriver=debug");
    let bad = api.ask("PUT", "/api/v1/log-level", Some(json!({"filter": "x==y"}))).await;
    assert_eq!(bad.problem().status, 400);
    assert_eq!(api.get("/api/v1/log-level").await.json::<LogLevel>().filter, "info,volumedriver=debug");
}

#[tokio::test(start_paused = true)]
async fn the_cluster_is_asked_and_its_refusals_are_passed_on() {
    let api = Api::start(None).await;
    assert_eq!(api.get("/api/v1/cluster").await.problem().code, "unavailable");
    let leave = async |query: &str| api.ask("POST", &format!("/api/v1/cluster/leave{query}"), None).await;
    assert_eq!(leave("").await.problem().code, "conflict");
    assert_eq!(leave("?member=3").await.problem().code, "not_found");
    assert_eq!(leave("?member=x").await.problem().status, 400);
    assert_eq!(leave("?member=7").await.status, 204);
    let made = api.ask("POST", "/api/v1/cluster/backup", Some(json!({"path": "/b"}))).await;
    assert_eq!((made.status, made.json::<types::BackedUp>().path.as_str()), (201, "/b"));
    let bad = api.ask("POST", "/api/v1/cluster/backup", Some(json!({"to": "/b"}))).await;
    assert_eq!(bad.problem().status, 400);
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_is_a_problem_in_json() {
    let api = Api::start(None).await;
    for path in ["/", "/api", "/api/v1/nothing", "/api/v1/vdisks/p", "/api/v1/vdisks/p/d/e", "/api/v2/vpools"]
    {
        let problem = api.get(path).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (404, "not_found"), "{path}");
    }
    assert_eq!(api.ask("PUT", "/api/v1/vpools", None).await.problem().status, 405);
    assert_eq!(api.get("/api/v1/vpools/nope").await.problem().code, "not_found");
    assert_eq!(api.get("/api/v1/vdisks/nope/d").await.problem().code, "not_found");
    assert_eq!(api.get("/api/v1/vdisks?vpool=nope").await.problem().code, "not_found");
    assert_eq!(api.ask("DELETE", "/api/v1/vpools/nope", None).await.problem().code, "not_found");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_unknown_is_refused_by_its_name() {
    let api = Api::start(None).await;
    for (method, path, body) in [
        ("POST", "/api/v1/vpools", json!({"name": "p", "backend": {}, "colour": 1})),
        ("POST", "/api/v1/vdisks", json!({"name": "d", "vpool": "p", "size_bytes": 1, "colour": 1})),
        ("PATCH", "/api/v1/vdisks/p/d", json!({"size_bytes": 1, "colour": 1})),
        ("PUT", "/api/v1/log-level", json!({"filter": "info", "colour": 1})),
    ] {
        let problem = api.ask(method, path, Some(body)).await.problem();
        assert_eq!(problem.code, "invalid");
        assert!(problem.detail.contains("colour"), "{problem:?}");
    }
    for path in ["/api/v1/vdisks?colour=1", "/api/v1/vdisks?vpool=a&vpool=b"] {
        assert_eq!(api.get(path).await.problem().code, "invalid", "{path}");
    }
    let problem = api.ask("DELETE", "/api/v1/vdisks/p/d?force=perhaps", None).await.problem();
    assert_eq!(problem.code, "invalid");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_right_is_refused() {
    let api = Api::start(None).await;
    for body in ["", "{", "[]", "null", "{\"name\": 3}", "\u{0}", "{\"name\":\"p\",\"backend\":{}}x"] {
        let request = Request::post("/api/v1/vpools").header("content-type", "application/json");
        let reply = api.send(request.body(body.to_string().into()).unwrap()).await;
        assert_eq!(reply.problem().code, "invalid", "{body}");
    }
    let huge = " ".repeat(BODY_LIMIT + 1);
    let request = Request::post("/api/v1/vpools").header("content-type", "application/json");
    assert_eq!(api.send(request.body(huge.into()).unwrap()).await.problem().status, 413);
    let request = Request::post("/api/v1/vpools").header("content-type", "text/plain");
    assert_eq!(api.send(request.body("{}".into()).unwrap()).await.problem().status, 415);
    for name in ["", "a/b", "-a", "a b", &"x".repeat(64), "\u{e9}"] {
        assert_eq!(api.vpool(name).await.problem().code, "invalid", "{name}");
    }
    let body = json!({"name": "p", "backend": {"kind": "sim"}, "cluster_size_bytes": 5000});
    assert!(api.ask("POST", "/api/v1/vpools", Some(body)).await.problem().detail.contains("5000"));
    let body = json!({"name": "p", "backend": {"kind": "tape"}});
    assert!(api.ask("POST", "/api/v1/vpools", Some(body)).await.problem().detail.contains("tape"));
}

#[tokio::test(start_paused = true)]
async fn without_the_token_only_the_watchdogs_get_in() {
    let token = "0123456789abcdef";
    let api = Api::start(Some(token)).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(api.get(path).await.status, 200);
    }
    for path in ["/metrics", "/openapi.json", "/api/v1/vpools", "/api/v1/health", "/nothing", "/healthz/"] {
        let problem = api.get(path).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (401, "unauthorized"), "{path}");
    }
    for (header, status) in [
        (format!("Bearer {token}"), 200),
        (format!("bearer {token}"), 200),
        (format!("Bearer {token}x"), 401),
        ("Bearer ".to_string(), 401),
        (format!("Basic {token}"), 401),
        (token.to_string(), 401),
        ("B".to_string(), 401),
    ] {
        let request = Request::get("/api/v1/vpools").header("authorization", &header);
        let reply = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, status, "{header}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_vpool_and_a_vdisk_over_http() {
    let api = Api::start(None).await;
    let reply = api.vpool("p").await;
    assert_eq!(reply.status, 201, "{:?}", reply.body);
    let vpool: Vpool = reply.json();
    assert_eq!((vpool.cluster_size_bytes, vpool.backend), (4096, json!({"kind": "sim"})));
    assert_eq!(api.get(&format!("/api/v1/vpools/{}", vpool.id)).await.json::<Vpool>().name, "p");
    assert_eq!(api.vpool("p").await.problem().code, "conflict");
    assert!(api.vpool("q").await.problem().detail.contains("--adopt"));

    let reply = api.vdisk("d").await;
    assert_eq!(reply.status, 201, "{:?}", reply.body);
    let vdisk: Vdisk = reply.json();
    assert_eq!((vdisk.state, vdisk.size_bytes, vdisk.in_use), (VdiskState::Serving, 1 << 30, 0));
    assert_eq!(vdisk.sco_size_bytes, 8 << 20);
    assert!(vdisk.epoch >= 1 && vdisk.frontiers.is_some() && vdisk.stored_bytes.is_some());
    assert_eq!(vdisk.nbd_uri.as_deref(), Some("nbd://127.0.0.1:10809/p/d"));
    assert_eq!(vdisk.nbd_unix_uri.as_deref(), Some("nbd+unix:///p/d?socket=/run/a%20b/nbd%3F.sock"));
    assert_eq!(vdisk.edge, ["127.0.0.1:10810", "unix:/run/edge.sock"]);
    assert_eq!(vdisk.dtl.mode, "none");

    let list: VdiskList = api.get("/api/v1/vdisks?vpool=p").await.json();
    assert_eq!(list.items.len(), 1);
    let shown: Vdisk = api.get(&format!("/api/v1/vdisks/p/{}", vdisk.id)).await.json();
    assert_eq!(shown.name, "d");

    let grow = json!({"size_bytes": 2u64 << 30});
    let grown: Vdisk = api.ask("PATCH", "/api/v1/vdisks/p/d", Some(grow)).await.json();
    assert_eq!(grown.size_bytes, 2 << 30);
    let shrink = api.ask("PATCH", "/api/v1/vdisks/p/d", Some(json!({"size_bytes": 4096}))).await;
    assert_eq!(shrink.problem().code, "unsupported");
    let odd = api.ask("PATCH", "/api/v1/vdisks/p/d", Some(json!({"size_bytes": (2u64 << 30) + 1}))).await;
    assert!(odd.problem().detail.contains("2147483648"));

    assert_eq!(api.ask("POST", "/api/v1/vdisks/p/d/drain", None).await.status, 200);
    assert_eq!(api.ask("POST", "/api/v1/vdisks/p/d/drain?wait=0", None).await.status, 202);
    assert_eq!(api.ask("POST", "/api/v1/vdisks/p/d/drain?wait=3601", None).await.status, 400);
    for (query, status) in
        [("", 200), ("?merge=true", 200), ("?wait=0", 202), ("?wait=3601", 400), ("?x=1", 400)]
    {
        let answer = api.ask("POST", &format!("/api/v1/vdisks/p/d/scrub{query}"), None).await;
        assert_eq!(answer.status, status, "{query}: {:?}", answer.body);
    }
    assert_eq!(api.ask("DELETE", "/api/v1/vpools/p", None).await.problem().code, "conflict");
    assert_eq!(api.ask("DELETE", "/api/v1/vpools/p?force=true", None).await.problem().code, "invalid");
    assert_eq!(api.ask("DELETE", "/api/v1/vdisks/p/d", None).await.status, 204);
    assert_eq!(api.get("/api/v1/vdisks/p/d").await.problem().status, 404);
    assert_eq!(api.ask("DELETE", "/api/v1/vpools/p", None).await.status, 204);
    assert_eq!(api.get("/api/v1/vpools/p").await.problem().status, 404);
    api.router.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn sizes_that_cannot_be_are_refused_with_the_nearest_that_can() {
    let api = Api::start(None).await;
    assert_eq!(api.vpool("p").await.status, 201);
    for (size, near) in [(0u64, "4096"), (1, "4096"), (5000, "4096"), (65 << 40, "70368744177664")] {
        let body = json!({"name": "d", "vpool": "p", "size_bytes": size});
        let problem = api.ask("POST", "/api/v1/vdisks", Some(body)).await.problem();
        assert_eq!(problem.code, "invalid");
        assert!(problem.detail.ends_with(&format!("the nearest valid size is {near} bytes")), "{problem:?}");
    }
    let body = json!({"name": "d", "vpool": "p", "size_bytes": 4096, "sco_size_bytes": 4096});
    assert!(api.ask("POST", "/api/v1/vdisks", Some(body)).await.problem().detail.contains("1048576"));
    let body = json!({"name": "a/b", "vpool": "p", "size_bytes": 4096});
    assert!(api.ask("POST", "/api/v1/vdisks", Some(body)).await.problem().detail.contains("a/b"));
    assert!(api.get("/api/v1/vdisks").await.json::<VdiskList>().items.is_empty());
    api.router.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn limits_are_shown_set_as_a_whole_and_taken_away() {
    let api = Api::start(None).await;
    assert_eq!(api.vpool("p").await.status, 201);
    assert!(api.vdisk("d").await.json::<Value>().get("qos").is_none());
    let patch = async |body: Value| api.ask("PATCH", "/api/v1/vdisks/p/d", Some(body)).await;
    let set = patch(json!({"qos": {"read_iops": 200, "write_bytes_per_second": 1 << 20}})).await;
    let want = json!({"read_iops": 200, "write_bytes_per_second": 1 << 20, "burst_ms": 1000});
    assert_eq!(set.json::<Value>()["qos"], want);
    assert_eq!(api.get("/api/v1/vdisks/p/d").await.json::<Value>()["qos"], want);
    for (wrong, words) in [
        (json!({"qos": {"write_iops": 0}}), "qos: write_iops = 0"),
        (json!({"qos": {"read_bytes_per_second": 10}}), "qos: read_bytes_per_second = 10"),
        (json!({"qos": {"burst_ms": 500}}), "qos: burst_ms = 500 alone"),
        (json!({"qos": {"read_iops": 1, "burst_ms": 70_000}}), "qos: burst_ms = 70000"),
        (json!({"qos": {"iops": 1}}), "iops"),
        (json!({"qos": {"read_iops": -1}}), "-1"),
        // Nothing of it is done.
        (json!({"qos": {"read_iops": 0}, "size_bytes": 2u64 << 30, "read_only": true}), "read_iops"),
    ] {
        let problem = patch(wrong).await.problem();
        assert_eq!(problem.code, "invalid");
        assert!(problem.detail.contains(words), "{problem:?}");
    }
    let shown = api.get("/api/v1/vdisks/p/d").await.json::<Vdisk>();
    assert_eq!((shown.size_bytes, shown.read_only), (1 << 30, false));
    assert_eq!(serde_json::to_value(shown.qos).unwrap(), want);
    let other = patch(json!({"qos": {"write_iops": 5, "read_iops": null, "burst_ms": 100}})).await;
    assert_eq!(other.json::<Value>()["qos"], json!({"write_iops": 5, "burst_ms": 100}));
    assert!(patch(json!({"qos": {}})).await.json::<Value>().get("qos").is_none());
    assert!(patch(json!({})).await.problem().detail.contains("'qos'"));
    api.router.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_quota_is_shown_set_and_taken_away() {
    let api = Api::start(None).await;
    assert_eq!(api.vpool("p").await.status, 201);
    assert!(api.vdisk("d").await.json::<Value>().get("cache_quota_bytes").is_none());
    let patch = async |body: Value| api.ask("PATCH", "/api/v1/vdisks/p/d", Some(body)).await;
    let set = patch(json!({"cache_quota_bytes": 1 << 30})).await.json::<Value>();
    assert_eq!(set["cache_quota_bytes"], 1 << 30);
    assert_eq!(set["cache"]["ssd_bytes"], 0);
    // Nothing of it is done.
    let wrong = patch(json!({"cache_quota_bytes": 5, "read_only": true})).await.problem();
    assert!(wrong.detail.contains("cache quota of 5 bytes"), "{wrong:?}");
    let shown = api.get("/api/v1/vdisks/p/d").await.json::<Vdisk>();
    assert_eq!((shown.cache_quota_bytes, shown.read_only), (Some(1 << 30), false));
    let none = patch(json!({"cache_quota_bytes": 0})).await.json::<Value>();
    assert!(none.get("cache_quota_bytes").is_none());
    api.router.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_vdisk_in_use_needs_force() {
    let api = Api::start(None).await;
    assert_eq!(api.vpool("p").await.status, 201);
    assert_eq!(api.vdisk("d").await.status, 201);
    let client = RouterExports(api.router.clone()).open("p/d").await.unwrap();
    assert_eq!(api.get("/api/v1/vdisks/p/d").await.json::<Vdisk>().in_use, 1);
    let problem = api.ask("DELETE", "/api/v1/vdisks/p/d", None).await.problem();
    assert_eq!(problem.code, "denied");
    assert!(problem.detail.contains("1 client"), "{problem:?}");
    assert_eq!(api.ask("DELETE", "/api/v1/vdisks/p/d?force=true", None).await.status, 204);
    assert_eq!(client.flush().await.unwrap_err().kind, common::ErrorKind::Fenced);
    api.router.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_detached_vpool_is_adopted_with_its_vdisks() {
    let api = Api::start(None).await;
    assert_eq!(api.vpool("p").await.status, 201);
    let made: Vdisk = api.vdisk("d").await.json();
    assert_eq!(api.ask("DELETE", "/api/v1/vpools/p?detach=true", None).await.status, 204);
    assert!(api.get("/api/v1/vdisks").await.json::<VdiskList>().items.is_empty());
    let body = json!({"name": "again", "backend": {"kind": "sim"}, "adopt": true});
    let vpool: Vpool = api.ask("POST", "/api/v1/vpools", Some(body)).await.json();
    let adopted = vpool.adopted.unwrap();
    assert_eq!((adopted[0].name.as_str(), &adopted[0].id), ("d", &made.id));
    assert_eq!(api.get("/api/v1/vdisks/again/d").await.json::<Vdisk>().id, made.id);
    api.router.shutdown(Duration::from_secs(5)).await;
}
