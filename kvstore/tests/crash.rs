//! What only another process can show: kill -9 at any moment, and a full disk.

use bytes::Bytes;
use common::kv::{Kv, KvOp};
use common::table::{Batch, Table};
use common::{Error, ErrorKind};
use kvstore::{LocalKv, RocksSettings, RocksTable};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CHILD: &str = "STORAGEROUTER_TEST_KVSTORE";

fn child_path() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

fn settings() -> RocksSettings {
    // Small buffers, so that flushes and compactions are killed too.
    RocksSettings { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, ..RocksSettings::default() }
}

fn value(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().repeat(60))
}

/// Not a test of its own: writes until it is killed, and says what returned.
#[tokio::test]
#[ignore = "started by another test"]
async fn child_writes_a_registry() {
    let Some(path) = child_path() else { return };
    let kv = LocalKv::open(path).unwrap();
    for n in 0u64.. {
        // Two keys per transaction: half of one must never be seen.
        let ops = vec![KvOp::Put(format!("a/{n:08}"), value(n)), KvOp::Put(format!("b/{n:08}"), value(n))];
        kv.txn(vec![], ops).await.unwrap();
        println!("wrote {n}");
    }
}

/// Not a test of its own: writes until it is killed, and says what returned.
#[test]
#[ignore = "started by another test"]
fn child_writes_a_table() {
    let Some(path) = child_path() else { return };
    let table = RocksTable::open(path, settings()).unwrap();
    for n in 0u64.. {
        let mut batch = Batch::default();
        batch.put(n.to_be_bytes(), value(n));
        batch.put(*b"watermark", n.to_be_bytes().to_vec());
        table.write(batch).unwrap();
        println!("wrote {n}");
    }
}

/// Kills the child after it wrote `count` times; the last number that it said.
fn kill_after(child: &str, path: &Path, count: u64) -> u64 {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--ignored", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = None;
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(|line| line.ok());
    let number = |line: String| line.rsplit_once("wrote ").and_then(|(_, n)| n.parse::<u64>().ok());
    for line in lines.by_ref() {
        last = number(line).or(last);
        if last >= Some(count) {
            break;
        }
    }
    process.kill().unwrap();
    for line in lines {
        last = number(line).or(last);
    }
    process.wait().unwrap();
    last.expect("the child wrote nothing")
}

#[tokio::test]
async fn a_killed_registry_has_every_transaction_that_returned_whole() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5u64 {
        let path = dir.path().join(round.to_string());
        let last = kill_after("child_writes_a_registry", &path, 3 + round * 61);
        let kv = LocalKv::open(&path).unwrap();
        let (a, b) = (kv.scan("a/").await.unwrap(), kv.scan("b/").await.unwrap());
        assert!(a.len() as u64 > last, "{} of {} transactions are there", a.len(), last + 1);
        assert_eq!(a.len(), b.len(), "half a transaction is there");
        for (n, (a, b)) in a.iter().zip(&b).enumerate() {
            assert_eq!((&a.value, a.revision), (&b.value, b.revision));
            assert_eq!(a.value, value(n as u64));
        }
        let newest = a.last().unwrap().revision;
        let next = kv.txn(vec![], vec![KvOp::Delete("nothing".into())]).await.unwrap();
        assert!(next > newest, "revision {next} was given after {newest}");
    }
}

#[test]
fn a_killed_table_has_every_batch_that_returned() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5u64 {
        let path = dir.path().join(round.to_string());
        let last = kill_after("child_writes_a_table", &path, 10 + round * 4000);
        let table = RocksTable::open(&path, settings()).unwrap();
        let watermark = table.get(b"watermark").unwrap().unwrap();
        let watermark = u64::from_be_bytes(watermark[..].try_into().unwrap());
        assert!(watermark >= last, "the table is at {watermark}, batch {last} had returned");
        for n in 0..=watermark {
            assert_eq!(table.get(&n.to_be_bytes()).unwrap(), Some(value(n)), "batch {n} of {watermark}");
        }
        assert_eq!(table.get(&(watermark + 1).to_be_bytes()).unwrap(), None);
    }
}

/// 1 MiB that stays 1 MiB.
fn incompressible(seed: u32) -> Bytes {
    let mut x = u64::from(seed) + 1;
    let words = (0..(1 << 17)).flat_map(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    words.collect::<Vec<u8>>().into()
}

fn full(outcome: Option<Error>) {
    let error = outcome.expect("it all fitted on the small disk");
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(error.message().contains("no space left"), "{error}");
}

/// Not a test of its own: runs on a file system of 32 MiB.
#[tokio::test]
#[ignore = "started by another test"]
async fn child_on_a_small_disk() {
    let Some(path) = child_path() else { return };
    // More than all write buffers, so that a flush that failed fits once it is gone.
    let ballast = path.join("ballast");
    std::fs::write(&ballast, vec![1; 12 << 20]).unwrap();
    let kv = LocalKv::open(path.join("kv")).unwrap();
    let mut written = 0u32;
    let mut failed = None;
    for n in 0..40u32 {
        let op = KvOp::Put(format!("k/{n:02}"), incompressible(n));
        match kv.txn(vec![], vec![op]).await {
            Ok(_) => written += 1,
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
    }
    full(failed);
    assert_eq!(kv.scan("k/").await.unwrap().len() as u32, written);
    std::fs::remove_file(&ballast).unwrap();
    // It goes on by itself soon after there is room.
    let mut again = Err(Error::internal("not tried"));
    for _ in 0..150 {
        again = kv.txn(vec![], vec![KvOp::Put("after".into(), Bytes::from_static(b"x"))]).await;
        if again.is_ok() {
            break;
        }
        pause().await;
    }
    again.expect("the registry did not go on after space was freed");
    drop(kv);
    let kv = LocalKv::open(path.join("kv")).unwrap();
    assert_eq!(kv.scan("k/").await.unwrap().len() as u32, written);
    assert!(kv.get("after").await.unwrap().is_some());
    println!("the small disk was full, and then not");
}

#[allow(clippy::disallowed_methods)] // A test against a real clock.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
}

#[test]
fn a_full_disk_is_no_space_and_it_goes_on_when_there_is_room() {
    // A mount namespace of its own gives a disk of exactly 32 MiB, which vanishes with the child.
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let user: &[&str] = if root { &[] } else { &["--user", "--map-root-user"] };
    let output = Command::new("unshare")
        .args(user)
        .args(["--mount", "sh", "-ec", r#"mount -t tmpfs -o size=32m none "$1"; shift; exec "$@""#, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_on_a_small_disk", "--ignored", "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .expect("the command 'unshare' (package util-linux) is needed for this test");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("the small disk was full, and then not"),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
