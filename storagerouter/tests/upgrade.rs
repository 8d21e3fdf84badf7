//! A data directory of the release before, whose registry was of one node, becomes the first member of a cluster.

mod support;

use common::Kv;
use common::kv::KvOp;
use kvstore::{LocalKv, Stopped};
use std::path::Path;
use std::time::Duration;
use support::{Router, run, scratch};

/// Makes of a stopped router's data directory what the release before would have left.
fn as_before(data: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let stopped = Stopped::open(data.join("cluster")).unwrap().unwrap();
        let old = LocalKv::open(data.join("registry")).unwrap();
        for pair in stopped.scan("").await.unwrap() {
            if !pair.key.starts_with("cluster/") {
                old.txn(vec![], vec![KvOp::Put(pair.key, pair.value)]).await.unwrap();
            }
        }
    });
    std::fs::remove_dir_all(data.join("cluster")).unwrap();
    let format = std::fs::read_to_string(data.join("format")).unwrap();
    assert!(format.contains("\"format\":2"), "{format}");
    std::fs::write(data.join("format"), format.replace("\"format\":2", "\"format\":1")).unwrap();
}

fn with_vdisks(dir: &Path) -> (Router, Vec<String>) {
    let router = Router::start(dir);
    let store = dir.join("store");
    let made =
        router.run(&["vpool", "create", "p", "--backend", "directory", "--path", store.to_str().unwrap()]);
    assert_eq!(made.code, 0, "{}", made.err);
    for n in 0..20 {
        let name = format!("d{n:02}");
        let made = router.run(&["vdisk", "create", &name, "--vpool", "p", "--size", "1GiB"]);
        assert_eq!(made.code, 0, "{}", made.err);
    }
    assert_eq!(router.run(&["vdisk", "qos", "d07", "--read-iops", "77"]).code, 0);
    let ids = ids(&router);
    (router, ids)
}

fn ids(router: &Router) -> Vec<String> {
    let list = router.run(&["vdisk", "list", "-o", "json"]).json();
    let items = list["items"].as_array().unwrap();
    items.iter().map(|disk| format!("{} {} {}", disk["name"], disk["id"], disk["qos"])).collect()
}

#[test]
#[allow(clippy::disallowed_methods)]
fn a_registry_of_one_node_is_upgraded_in_place_whenever_it_is_killed() {
    let dir = scratch();
    let (mut router, before) = with_vdisks(dir.path());
    assert_eq!(before.len(), 20);
    assert_eq!(router.terminate(), 0);
    let data = router.data().to_path_buf();
    as_before(&data);
    // Tools read the old one where it is.
    let words = ["fsck", "p/d07", "--data-dir", data.to_str().unwrap()];
    assert_eq!(run(&words).code, 0, "{}", run(&words).err);
    let mut formats = Vec::new();
    for round in 0..12 {
        let child = Router::launch(dir.path());
        std::thread::sleep(Duration::from_millis(15 * round));
        drop(child);
        formats.push(std::fs::read_to_string(data.join("format")).unwrap().contains("\"format\":2"));
    }
    println!("upgraded when killed: {formats:?}");
    let mut router = Router::start(dir.path());
    assert_eq!(ids(&router), before);
    let cluster = router.run(&["cluster", "status", "-o", "json"]).json();
    assert_eq!((&cluster["voters"], &cluster["answering"]), (&1.into(), &1.into()));
    assert_eq!(router.terminate(), 0);
    assert!(std::fs::read_to_string(data.join("format")).unwrap().contains("\"format\":2"));
    // Its records were taken once; a copy of them that is older is never taken again.
    std::fs::remove_dir_all(data.join("cluster")).unwrap();
    let mut words = vec!["serve", "--data-dir", data.to_str().unwrap()];
    words.extend(support::ANY_PORT.iter().flat_map(|setting| ["--set", setting]));
    let refused = run(&words);
    assert!(refused.code != 0 && refused.err.contains("has moved"), "{}{}", refused.code, refused.err);
}

#[test]
fn tools_read_the_registry_of_a_stopped_router_and_a_backup_brings_it_back() {
    let dir = scratch();
    let (mut router, before) = with_vdisks(dir.path());
    let backup = dir.path().join("backup");
    let made = router.run(&["registry", "backup", backup.to_str().unwrap(), "-o", "json"]).json();
    assert_eq!(made["path"], backup.to_str().unwrap());
    assert_eq!(router.run(&["registry", "backup", backup.to_str().unwrap()]).code, 4);
    assert_eq!(router.terminate(), 0);
    let data = router.data().to_str().unwrap().to_string();
    assert_eq!(run(&["fsck", "p/d03", "--data-dir", &data]).code, 0);
    assert_eq!(run(&["inspect", "--vpool", "p", "vpool", "--data-dir", &data]).code, 0);
    assert_eq!(run(&["fsck", "p/none", "--data-dir", &data]).code, 3);
    let restore =
        ["registry", "restore", "--data-dir", &data, "--from", backup.to_str().unwrap(), "--quiet", "1"];
    let refused = run(&restore);
    assert!(refused.code == 4 && refused.err.contains("has a registry"), "{}{}", refused.code, refused.err);
    std::fs::remove_dir_all(router.data().join("cluster")).unwrap();
    let restored = run(&restore);
    assert_eq!(restored.code, 0, "{}", restored.err);
    let mut router = Router::start(dir.path());
    assert_eq!(ids(&router), before);
    assert_eq!(router.terminate(), 0);
}
