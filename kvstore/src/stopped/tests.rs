use super::*;
use crate::client::{Client, ClientConfig};
use crate::node::{Instance, InstanceConfig, Metrics, Settings};
use crate::table::RocksSettings;
use crate::upgrade::Origin;
use common::clock::SystemClock;
use tokio::net::TcpListener;

#[tokio::test]
async fn what_a_member_applied_can_be_read_when_it_does_not_run_and_nothing_else_can_be_done() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Stopped::open(dir.path()).unwrap().is_none());
    let clock: Arc<dyn common::Clock> = Arc::new(SystemClock::new());
    let config = InstanceConfig {
        dir: dir.path().into(),
        member: 1,
        origin: Origin::Found { address: "here:1".into(), local: None },
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tls: None,
        clock: clock.clone(),
        settings: Settings::default(),
        rocks: RocksSettings::default(),
        metrics: Metrics::default(),
    };
    let begun = clock.now();
    let member = Instance::start(config).await.unwrap();
    let local = Some(member.handle());
    let client = Client::new(ClientConfig { local, ..ClientConfig::new(vec![]) }, clock.clone());
    client.txn(vec![], vec![KvOp::Put("a/1".into(), "x".into())]).await.unwrap();
    let took = clock.now() - begun;
    // An election by time-out takes half a second at least.
    assert!(took < std::time::Duration::from_millis(400), "a member that votes alone led after {took:?}");
    client.txn(vec![], vec![KvOp::Put("a/2".into(), "y".into())]).await.unwrap();
    client.txn(vec![], vec![KvOp::Put("b".into(), "z".into())]).await.unwrap();
    let (group, status) = (member.group(), client.status().await.unwrap());
    let pairs = client.scan("a/").await.unwrap();
    member.kill().await;
    let stopped = Stopped::open(dir.path()).unwrap().unwrap();
    assert_eq!(stopped.group(), group);
    assert_eq!(stopped.status(), Status { leader: None, ..status });
    assert_eq!(stopped.scan("a/").await.unwrap(), pairs);
    assert_eq!(stopped.get("b").await.unwrap().unwrap().value, "z");
    assert!(stopped.get("c").await.unwrap().is_none());
    let put = stopped.txn(vec![], vec![KvOp::Put("c".into(), "x".into())]).await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::Unsupported);
}
