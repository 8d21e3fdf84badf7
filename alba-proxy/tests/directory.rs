//! The `directory` store through what only another process can show: kill -9 and a full disk.

use bytes::Bytes;
use common::ErrorKind;
use common::clock::SystemClock;
use common::object::{ObjectStore, Precondition, list_all};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alba_proxy::directory::DirectoryStore;

const CHILD: &str = "STORAGEROUTER_TEST_DIRECTORY";

fn body(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().repeat(3000 + (n as usize % 7) * 1000))
}

fn child_path() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Not a test of its own: puts objects until it is killed, and says which are there.
#[tokio::test]
#[ignore = "started by another test"]
async fn child_puts_until_killed() {
    let Some(path) = child_path() else { return };
    let store = DirectoryStore::open(&path, std::sync::Arc::new(SystemClock::new())).unwrap();
    for n in 0u64.. {
        store.put(&format!("v/s/{n:016x}"), body(n), Precondition::IfAbsent).await.unwrap();
        println!("put {n}");
    }
}

#[tokio::test]
async fn killed_at_any_moment_every_put_that_returned_is_there_whole() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..6u64 {
        let path = dir.path().join(round.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_puts_until_killed", "--ignored", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = None;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines.by_ref() {
            if let Some((_, n)) = line.rsplit_once("put ") {
                last = n.parse::<u64>().ok();
                if last >= Some(5 + round * 9) {
                    break;
                }
            }
        }
        child.kill().unwrap();
        for line in lines {
            last = line.rsplit_once("put ").and_then(|(_, n)| n.parse().ok()).or(last);
        }
        child.wait().unwrap();
        let last = last.expect("the child never put anything");

        let store = DirectoryStore::open(&path, std::sync::Arc::new(SystemClock::new())).unwrap();
        let listed = list_all(&store, "").await.unwrap();
        assert!(listed.len() as u64 > last, "{} objects of {}", listed.len(), last + 1);
        for (n, object) in listed.iter().enumerate() {
            let n = n as u64;
            assert_eq!(object.key, format!("v/s/{n:016x}"));
            assert_eq!(store.get(&object.key).await.unwrap(), body(n));
        }
        let temporary: usize = std::fs::read_dir(path.join(".tmp"))
            .unwrap()
            .map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count())
            .sum();
        assert_eq!(temporary, 0, "temporary files of the killed process stay behind");
    }
}

/// Not a test of its own: runs on a file system of 1 MiB.
#[tokio::test]
#[ignore = "started by another test"]
async fn child_on_a_small_disk() {
    let Some(path) = child_path() else { return };
    let store = DirectoryStore::open(&path.join("store"), std::sync::Arc::new(SystemClock::new())).unwrap();
    let chunk = Bytes::from(vec![7; 100 << 10]);
    let mut full = None;
    for n in 0..20 {
        if let Err(e) = store.put(&format!("k/{n}"), chunk.clone(), Precondition::IfAbsent).await {
            full = Some((n, e));
            break;
        }
    }
    let (n, error) = full.expect("20 x 100 KiB fit into 1 MiB");
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(error.message().contains("no space left"), "{error}");
    assert_eq!(store.head(&format!("k/{n}")).await.unwrap(), None, "half an object is there");
    // Once there is room it goes on by itself.
    store.delete("k/0").await.unwrap();
    store.put(&format!("k/{n}"), chunk.clone(), Precondition::IfAbsent).await.unwrap();
    assert_eq!(store.get(&format!("k/{n}")).await.unwrap(), chunk);
    println!("the small disk was full, and then not");
}

#[test]
fn a_full_disk_is_no_space_and_it_goes_on_when_there_is_room() {
    // A mount namespace of its own gives a disk of exactly 1 MiB, which vanishes with the child.
    let dir = tempfile::tempdir().unwrap();
    let child = |dir: &Path, user: &[&str]| {
        Command::new("unshare")
            .args(user)
            .args(["--mount", "sh", "-ec", r#"mount -t tmpfs -o size=1m none "$1"; shift; exec "$@""#, "sh"])
            .arg(dir)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child_on_a_small_disk", "--ignored", "--nocapture"])
            .env(CHILD, dir)
            .output()
            .expect("the command 'unshare' (package util-linux) is needed for this test")
    };
    let root = rustix::process::geteuid().is_root();
    let output = child(dir.path(), if root { &[] } else { &["--user", "--map-root-user"] });
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("the small disk was full, and then not"),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
