use super::*;
use common::sim::SimKv;
use proptest::prelude::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

const KEYS: &[&str] = &["vpool/a", "vpool/b", "vdisk/1", "vdisk/10", "vdisk/2", "z"];

#[derive(Debug, Clone)]
enum Op {
    /// Asserts: key, and `None` for absent, or how far off the true revision is.
    Txn(Vec<(usize, Option<u64>)>, Vec<(usize, Option<Vec<u8>>)>),
    Get(usize),
    Scan(usize),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    let off = prop_oneof![2 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..20));
    prop_oneof![
        6 => (prop::collection::vec((key.clone(), off), 0..3), prop::collection::vec((key.clone(), value), 0..4))
            .prop_map(|(asserts, ops)| Op::Txn(asserts, ops)),
        2 => key.prop_map(Op::Get),
        2 => (0..5usize).prop_map(Op::Scan),
        1 => Just(Op::Reopen),
    ]
}

async fn asserts_of(model: &SimKv, asserts: &[(usize, Option<u64>)]) -> Vec<KvAssert> {
    let mut all = Vec::new();
    for (key, off) in asserts {
        let key = KEYS[*key].to_string();
        let have = model.get(&key).await.unwrap().map_or(0, |pair| pair.revision);
        all.push(match off {
            None => KvAssert::Absent(key),
            Some(off) => KvAssert::Revision(key, have + off),
        });
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_simulated_registry(ops in prop::collection::vec(op(), 1..50)) {
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let model = SimKv::new();
            let mut kv = LocalKv::open(dir.path()).unwrap();
            for op in ops {
                match op {
                    Op::Txn(asserts, ops) => {
                        let asserts = asserts_of(&model, &asserts).await;
                        let ops: Vec<_> = ops.into_iter().map(|(key, value)| match value {
                            Some(value) => KvOp::Put(KEYS[key].to_string(), value.into()),
                            None => KvOp::Delete(KEYS[key].to_string()),
                        }).collect();
                        prop_assert_eq!(
                            kv.txn(asserts.clone(), ops.clone()).await.map_err(|e| e.kind),
                            model.txn(asserts, ops).await.map_err(|e| e.kind)
                        );
                    }
                    Op::Get(k) => {
                        prop_assert_eq!(kv.get(KEYS[k]).await.unwrap(), model.get(KEYS[k]).await.unwrap());
                    }
                    Op::Scan(k) => {
                        let prefix = ["", "vdisk/", "vdisk/1", "vpool/b", "zz"][k];
                        prop_assert_eq!(kv.scan(prefix).await.unwrap(), model.scan(prefix).await.unwrap());
                    }
                    Op::Reopen => {
                        drop(kv);
                        kv = LocalKv::open(dir.path()).unwrap();
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_increments_by_compare_and_set_lose_none() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Arc::new(LocalKv::open(dir.path()).unwrap());
    kv.txn(vec![], vec![KvOp::Put("n".into(), Bytes::from_static(b"0"))]).await.unwrap();
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let kv = kv.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 25 {
                    let pair = kv.get("n").await.unwrap().unwrap();
                    let n: u64 = std::str::from_utf8(&pair.value).unwrap().parse().unwrap();
                    let asserts = vec![KvAssert::Revision("n".into(), pair.revision)];
                    match kv.txn(asserts, vec![KvOp::Put("n".into(), (n + 1).to_string().into())]).await {
                        Ok(revision) => {
                            assert!(revision > pair.revision);
                            done += 1;
                        }
                        Err(e) => assert_eq!(e.kind, ErrorKind::Conflict, "{e}"),
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(kv.get("n").await.unwrap().unwrap().value, "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_transactions_that_claim_one_key_at_once_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Arc::new(LocalKv::open(dir.path()).unwrap());
    let mut outcomes = Vec::new();
    // Spawned together, so that they land in few groups.
    let mut set = tokio::task::JoinSet::new();
    for n in 0..40u32 {
        let kv = kv.clone();
        set.spawn(async move {
            let ops = vec![
                KvOp::Put("claim".into(), n.to_string().into()),
                KvOp::Put(format!("by/{n}"), Bytes::new()),
            ];
            (n, kv.txn(vec![KvAssert::Absent("claim".into())], ops).await)
        });
    }
    while let Some(outcome) = set.join_next().await {
        outcomes.push(outcome.unwrap());
    }
    let winners: Vec<_> = outcomes.iter().filter(|(_, o)| o.is_ok()).map(|(n, _)| *n).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert!(outcomes.iter().all(|(_, o)| o.as_ref().err().is_none_or(|e| e.kind == ErrorKind::Conflict)));
    assert_eq!(kv.get("claim").await.unwrap().unwrap().value, winners[0].to_string());
    assert_eq!(kv.scan("by/").await.unwrap().len(), 1, "a refused transaction left something");
}

#[tokio::test]
async fn limits_are_errors_and_what_fits_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let kv = LocalKv::open(dir.path()).unwrap();
    let put = |key: &str, len: usize| KvOp::Put(key.to_string(), Bytes::from(vec![1; len]));
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let many: Vec<_> = (0..=MAX_TXN_OPS).map(|n| put(&format!("m/{n}"), 1)).collect();
    for ops in [vec![put("", 1)], vec![put(&long, 1)], vec![put("v", MAX_VALUE_BYTES + 1)], many.clone()] {
        assert_eq!(kv.txn(vec![], ops).await.unwrap_err().kind, ErrorKind::Invalid);
    }
    let asserts = vec![KvAssert::Absent(long.clone())];
    assert_eq!(kv.txn(asserts, vec![]).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(kv.get(&long).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(kv.scan("").await.unwrap(), [], "a refused transaction left something");
    kv.txn(vec![], vec![put(&long[1..], MAX_VALUE_BYTES)]).await.unwrap();
    kv.txn(vec![], many[..MAX_TXN_OPS].to_vec()).await.unwrap();
    assert_eq!(kv.scan("m/").await.unwrap().len(), MAX_TXN_OPS);
}

#[tokio::test]
async fn a_newer_format_is_refused_with_what_to_do_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let kv = LocalKv::open(dir.path()).unwrap();
    kv.txn(vec![], vec![KvOp::Put("k".into(), Bytes::from_static(b"v"))]).await.unwrap();
    let set = |version: u32| {
        let db = DB::open(&options(), dir.path()).unwrap();
        db.put(FORMAT_KEY, [FORMAT_MAGIC.as_slice(), &version.to_le_bytes()].concat()).unwrap();
    };
    drop(kv);
    set(MOVED_VERSION + 1);
    let error = LocalKv::open(dir.path()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("version 3") && error.message().contains("newer release"), "{error}");
    set(FORMAT_VERSION);
    let kv = LocalKv::open(dir.path()).unwrap();
    assert_eq!(kv.get("k").await.unwrap().unwrap().value, "v");
}

#[test]
fn a_database_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let db = DB::open(&options(), dir.path()).unwrap();
    db.put(b"some", b"thing").unwrap();
    drop(db);
    assert_eq!(LocalKv::open(dir.path()).err().unwrap().kind, ErrorKind::Corrupt);
}

#[test]
fn a_registry_that_is_open_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let kv = LocalKv::open(dir.path()).unwrap();
    let error = LocalKv::open(dir.path()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("held by another process"), "{error}");
    drop(kv);
    LocalKv::open(dir.path()).unwrap();
}

/// The newest write-ahead log.
fn log_file(dir: &Path) -> PathBuf {
    let mut logs: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort();
    logs.pop().unwrap()
}

#[tokio::test]
async fn a_torn_end_of_the_log_is_cut_and_damage_before_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let kv = LocalKv::open(dir.path()).unwrap();
    for n in 0..20u8 {
        kv.txn(vec![], vec![KvOp::Put(format!("k/{n:02}"), Bytes::from(vec![n; 300]))]).await.unwrap();
    }
    drop(kv);
    let log = log_file(dir.path());
    let whole = std::fs::read(&log).unwrap();
    assert!(whole.len() > 20 * 300);

    std::fs::write(&log, &whole[..whole.len() - 100]).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let kv = LocalKv::open(copy.path()).unwrap();
    assert_eq!(kv.scan("k/").await.unwrap().len(), 19);
    drop(kv);

    let mut damaged = whole;
    damaged[2000] ^= 1;
    std::fs::write(&log, damaged).unwrap();
    let error = LocalKv::open(dir.path()).err().expect("acknowledged transactions were dropped in silence");
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
}
