use super::*;
use common::Clock;
use common::clock::SystemClock;
use common::object::{ObjectMeta, list_all};
use common::sim::SimObjectStore;
use proptest::prelude::*;
use std::collections::HashSet;

fn open(path: &Path) -> DirectoryStore {
    DirectoryStore::open(path, Arc::new(SystemClock::new())).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Keys whose order differs from a plain walk of folders, and several in one folder.
const KEYS: &[&str] = &[
    "a-", "a.b", "a/x", "a/y", "a/b/c", "a/b-c", "a0", "Z", "b/s/01/1", "b/s/01/2", "b/s/02/1", "b/m/ff",
    "..c",
];
const PREFIXES: &[&str] =
    &["", "a", "a/", "a/b", "a/b/", "b/", "b/s/", "b/s/01/", "b/s/0", "Z", "zz", "nope/"];

#[derive(Debug, Clone)]
enum Op {
    Put(usize, Vec<u8>, bool),
    Get(usize),
    GetRange(usize, u64, u64),
    Head(usize),
    Delete(usize),
    List(usize, Option<String>, bool, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    let after = prop_oneof![
        2 => Just(None),
        3 => (0..KEYS.len()).prop_map(|k| Some(KEYS[k].to_string())),
        1 => prop_oneof![Just("a/"), Just("a/b/"), Just("b/s/01/"), Just("b/s/"), Just("~"), Just("!")]
            .prop_map(|s| Some(s.to_string())),
    ];
    prop_oneof![
        5 => (key.clone(), prop::collection::vec(any::<u8>(), 0..40), any::<bool>())
            .prop_map(|(k, data, absent)| Op::Put(k, data, absent)),
        2 => key.clone().prop_map(Op::Get),
        2 => (key.clone(), 0..45u64, 0..45u64).prop_map(|(k, a, b)| Op::GetRange(k, a, b)),
        1 => key.clone().prop_map(Op::Head),
        3 => key.prop_map(Op::Delete),
        4 => (0..PREFIXES.len(), after, any::<bool>(), 1..6usize)
            .prop_map(|(p, after, delimiter, limit)| Op::List(p, after, delimiter, limit)),
    ]
}

/// What a caller sees of an operation: the value, or the kind of the error.
async fn seen(store: &dyn ObjectStore, op: &Op) -> std::result::Result<String, ErrorKind> {
    let outcome = match op {
        Op::Put(k, data, absent) => {
            let precondition = if *absent { Precondition::IfAbsent } else { Precondition::None };
            store.put(KEYS[*k], data.clone().into(), precondition).await.map(|()| String::new())
        }
        Op::Get(k) => store.get(KEYS[*k]).await.map(|data| format!("{data:?}")),
        Op::GetRange(k, from, to) => {
            store.get_range(KEYS[*k], *from..*to).await.map(|data| format!("{data:?}"))
        }
        Op::Head(k) => store.head(KEYS[*k]).await.map(|len| format!("{len:?}")),
        Op::Delete(k) => store.delete(KEYS[*k]).await.map(|()| String::new()),
        Op::List(p, after, delimiter, limit) => {
            store.list(PREFIXES[*p], after.as_deref(), *delimiter, *limit).await.map(|l| format!("{l:?}"))
        }
    };
    outcome.map_err(|e| e.kind)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_simulated_store(ops in prop::collection::vec(op(), 1..60), reopen_at in 0..60usize) {
        let dir = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let model = SimObjectStore::new(0);
            let mut store = open(dir.path());
            for (n, op) in ops.iter().enumerate() {
                if n == reopen_at {
                    drop(store);
                    store = open(dir.path());
                }
                prop_assert_eq!(seen(&store, op).await, seen(&model, op).await, "operation {} {:?}", n, op);
            }
            let all: Vec<_> = list_all(&store, "").await.unwrap().into_iter().map(|o| o.key).collect();
            prop_assert_eq!(all, model.keys());
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_sixteen_racing_puts_one_wins_and_its_bytes_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    for round in 0..40 {
        let key = format!("r/{round}");
        let racers: Vec<_> = (0..16u8)
            .map(|n| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move {
                    store.put(&key, Bytes::from(vec![n; 5000]), Precondition::IfAbsent).await.map(|()| n)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                Ok(n) => winners.push(n),
                Err(e) => assert_eq!(e.kind, ErrorKind::Conflict, "{e}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get(&key).await.unwrap(), Bytes::from(vec![winners[0]; 5000]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn puts_and_deletes_in_one_folder_do_not_trip_over_its_tidying() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let workers: Vec<_> = (0..8)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..60 {
                    let key = format!("x/y/{n}-{round}");
                    store.put(&key, Bytes::from_static(b"body"), Precondition::IfAbsent).await.unwrap();
                    assert_eq!(store.get_range(&key, 0..4).await.unwrap(), "body");
                    store.delete(&key).await.unwrap();
                    assert_eq!(store.get(&key).await.unwrap_err().kind, ErrorKind::NotFound);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert!(!dir.path().join("x").exists(), "an empty folder stayed behind");
}

#[tokio::test]
async fn a_folder_that_another_router_emptied_and_removed_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (open(folder.path()), open(folder.path()));
    ours.put("v/t/1", Bytes::from_static(b"x"), Precondition::IfAbsent).await.unwrap();
    theirs.delete("v/t/1").await.unwrap();
    assert!(!folder.path().join("v").exists(), "empty folders go");
    ours.put("v/t/2", Bytes::from_static(b"y"), Precondition::IfAbsent).await.unwrap();
    assert_eq!(theirs.get("v/t/2").await.unwrap(), "y");
}

#[tokio::test]
async fn a_put_that_returned_is_what_the_next_read_sees() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for round in 0..50u8 {
        let body = Bytes::from(vec![round; 100 + usize::from(round)]);
        store.put("k", body.clone(), Precondition::None).await.unwrap();
        assert_eq!(store.get_range("k", 0..body.len() as u64).await.unwrap(), body);
        assert_eq!(store.get("k").await.unwrap(), body);
    }
    store.delete("k").await.unwrap();
    assert_eq!(store.get_range("k", 0..1).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_deleted_object_that_was_read_frees_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put("k", Bytes::from(vec![1; 4096]), Precondition::IfAbsent).await.unwrap();
    store.get_range("k", 0..4096).await.unwrap();
    store.delete("k").await.unwrap();
    let deleted = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|to| to.starts_with(dir.path()) && to.to_string_lossy().ends_with("(deleted)"))
        .count();
    assert_eq!(deleted, 0, "the file is still open");
}

#[tokio::test]
async fn a_big_folder_is_listed_page_by_page_while_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let folder = dir.path().join("v/s");
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..2500u32 {
        std::fs::write(folder.join(format!("{n:016x}")), b"x").unwrap();
    }
    let mut keys = Vec::new();
    let mut after: Option<String> = None;
    let mut pages = 0;
    loop {
        let page = store.list("v/s/", after.as_deref(), false, 1000).await.unwrap();
        keys.extend(page.objects.into_iter().map(|o| o.key));
        pages += 1;
        if pages == 1 {
            store.delete("v/s/00000000000007d1").await.unwrap();
            store.put("v/s/00000000000007d2a", Bytes::new(), Precondition::IfAbsent).await.unwrap();
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!((pages, keys.len()), (3, 2500));
    assert!(keys.is_sorted());
    assert!(!keys.contains(&"v/s/00000000000007d1".to_string()), "a deleted object is listed");
    assert!(keys.contains(&"v/s/00000000000007d2a".to_string()), "a new object is not listed");
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
}

#[tokio::test]
async fn a_listing_of_a_big_folder_sees_what_another_process_did() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (open(dir.path()), open(dir.path()));
    for n in 0..1100u32 {
        theirs.put(&format!("v/m/{:016x}", 5000 - n), Bytes::new(), Precondition::IfAbsent).await.unwrap();
    }
    for n in 1100..1200u32 {
        let first = async |store: &DirectoryStore| {
            store.list("v/m/", None, false, 1).await.unwrap().objects.remove(0).key
        };
        first(&ours).await;
        // So that it is worth remembering.
        if n % 10 == 0 {
            SystemClock::new().sleep(std::time::Duration::from_millis(30)).await;
            first(&ours).await;
        }
        let newest = format!("v/m/{:016x}", 5000 - n);
        theirs.put(&newest, Bytes::new(), Precondition::IfAbsent).await.unwrap();
        assert_eq!(first(&ours).await, newest);
    }
}

#[tokio::test]
async fn keys_that_lead_out_of_the_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    let store = open(&root);
    std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
    let long = "p".repeat(256);
    for key in ["../secret", "/etc/passwd", "a/../../secret", ".tmp/x", ".tmp", "", long.as_str()] {
        assert_eq!(store.get(key).await.unwrap_err().kind, ErrorKind::Invalid, "{key}");
        let put = store.put(key, Bytes::new(), Precondition::None).await;
        assert_eq!(put.unwrap_err().kind, ErrorKind::Invalid, "{key}");
        assert_eq!(store.delete(key).await.unwrap_err().kind, ErrorKind::Invalid, "{key}");
    }
    assert_eq!(store.list("../", None, false, 10).await.unwrap_err().kind, ErrorKind::Invalid);
    store.get("link").await.unwrap_err();
    assert_eq!(store.list("", None, false, 10).await.unwrap(), Listing::default());
}

#[tokio::test]
async fn a_key_below_another_object_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put("a", Bytes::new(), Precondition::IfAbsent).await.unwrap();
    store.put("d/x", Bytes::new(), Precondition::IfAbsent).await.unwrap();
    for (key, precondition) in
        [("a/b", Precondition::IfAbsent), ("d", Precondition::IfAbsent), ("d", Precondition::None)]
    {
        let error = store.put(key, Bytes::new(), precondition).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{key}: {error}");
    }
    assert_eq!(store.head("a/b").await.unwrap(), None);
    assert_eq!(store.get("d").await.unwrap_err().kind, ErrorKind::NotFound);
    store.delete("d").await.unwrap();
    assert_eq!(store.head("d/x").await.unwrap(), Some(0));
}

#[tokio::test]
async fn leftovers_of_dead_processes_go_and_those_of_living_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join(".tmp/0000000000000001");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join("0"), b"half an obj").unwrap();
    let first = open(dir.path());
    assert!(!dead.exists(), "the leftover of a dead process stays");
    let living = first.inner.temp.next();
    std::fs::write(&living, b"in flight").unwrap();
    let second = open(dir.path());
    assert!(living.exists(), "the file of a put in flight was removed");
    assert_eq!(second.list("", None, false, 10).await.unwrap(), Listing::default());
}

#[tokio::test]
async fn a_folder_that_was_unmounted_is_unavailable_and_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let store = open(&root);
    store.put("k", Bytes::from_static(b"x"), Precondition::IfAbsent).await.unwrap();
    std::fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    std::fs::create_dir(&root).unwrap();
    assert_eq!(store.get("k").await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(store.head("k").await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(store.delete("k").await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(store.list("", None, false, 10).await.unwrap_err().kind, ErrorKind::Unavailable);
    let put = store.put("l", Bytes::new(), Precondition::IfAbsent).await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::Unavailable);
}

#[test]
fn opening_says_what_is_wrong_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let kind = |path: &Path| DirectoryStore::open(path, Arc::new(SystemClock::new())).err().unwrap();
    let missing = kind(&dir.path().join("no/where"));
    assert_eq!(missing.kind, ErrorKind::NotFound);
    assert!(missing.message().contains("mkdir -p"), "{missing}");
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert_eq!(kind(&file).kind, ErrorKind::Invalid);
    let made = dir.path().join("made");
    open(&made);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn files_that_are_not_objects_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::write(dir.path().join("lost+found/x"), b"").unwrap();
    std::fs::create_dir_all(dir.path().join("empty/folder")).unwrap();
    store.put("a/b", Bytes::from_static(b"1234"), Precondition::IfAbsent).await.unwrap();
    let whole = store.list("", None, false, 10).await.unwrap();
    assert_eq!(whole.objects, [ObjectMeta { key: "a/b".into(), len: 4 }]);
    let folded = store.list("", None, true, 10).await.unwrap();
    assert_eq!((folded.prefixes, folded.objects.len()), (vec!["a/".to_string()], 0));
}
