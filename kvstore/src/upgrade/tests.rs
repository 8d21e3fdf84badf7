use super::*;
use crate::LocalKv;
use crate::machine::store::View;
use crate::machine::{Limits, Range};
use bytes::Bytes;
use common::kv::{Kv, KvOp};
use common::sim::SimTable;
use common::table::Table;
use common::{Error, ErrorKind};
use parking_lot::Mutex;
use std::path::Path;

/// A table that dies at a given write or checkpoint.
struct Dying {
    table: Arc<SimTable>,
    left: Mutex<Option<u32>>,
}

impl Dying {
    fn effect(&self) -> Result<()> {
        match &mut *self.left.lock() {
            Some(0) => Err(Error::internal("this process is dead")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Table for Dying {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.table.get(key)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        Table::scan(&*self.table, prefix, from, limit)
    }

    fn write(&self, batch: Batch) -> Result<()> {
        self.effect()?;
        self.table.write(batch)
    }

    fn delete_prefix(&self, prefix: &[u8]) -> Result<()> {
        self.effect()?;
        self.table.delete_prefix(prefix)
    }

    fn checkpoint(&self) -> Result<()> {
        self.effect()?;
        self.table.checkpoint()
    }
}

impl StateStore for Dying {
    fn view(&self) -> Result<Box<dyn View>> {
        self.table.view()
    }
}

async fn fill(path: &Path, count: u32) -> u64 {
    let kv = LocalKv::open(path).unwrap();
    for n in 0..count {
        let op = KvOp::Put(format!("k/{n:05}"), Bytes::from(format!("value {n}")));
        kv.txn(vec![], vec![op]).await.unwrap();
    }
    kv.txn(vec![], vec![KvOp::Delete("nothing".into())]).await.unwrap()
}

fn origin(path: &Path) -> Origin {
    Origin::Found { address: "here:1".into(), local: Some(path.to_path_buf()) }
}

fn check(store: Arc<dyn StateStore>, count: u32, revision: u64) {
    let machine = Machine::open(store, Limits::default()).unwrap().unwrap();
    let pairs = machine.range(&Range::prefix("")).unwrap().pairs;
    assert_eq!(pairs.len() as u32, count);
    for (n, pair) in pairs.iter().enumerate() {
        assert_eq!((pair.key.clone(), pair.revision), (format!("k/{n:05}"), n as u64 + 1));
        assert_eq!(pair.value, format!("value {n}"));
    }
    assert_eq!(machine.revision(), revision);
    assert_eq!(machine.meta().configuration.voters, [1]);
    assert_eq!(machine.members()[&1], "here:1");
}

#[tokio::test]
async fn a_registry_of_one_node_becomes_a_member_with_all_it_had_whenever_it_crashes() {
    let count = 600;
    let before = tempfile::tempdir().unwrap();
    let revision = fill(before.path(), count).await;
    let mut random = fastrand::Rng::with_seed(1);
    let mut deaths = 0;
    loop {
        // Each round is one process after the other on the same folder, the first of which dies.
        let dir = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(before.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        let table = Arc::new(SimTable::new());
        let dying = Arc::new(Dying { table: table.clone(), left: Mutex::new(Some(deaths)) });
        let died = prepare(dying, 1, &origin(dir.path()), 7).is_err();
        table.crash(|n| random.usize(..=n));
        let head = prepare(table.clone(), 1, &origin(dir.path()), 8).unwrap();
        assert_eq!(head.group == 8, died || table.get(HEAD_KEY).unwrap().is_none(), "death {deaths}");
        table.crash(|_| 0);
        check(table, count, revision);
        let error = LocalKv::open(dir.path()).err().expect("the old registry is still in use");
        assert!(error.kind == ErrorKind::Unsupported && error.message().contains("has moved"), "{error}");
        // Whatever happened, the new one has begun; when its folder is lost, this one is old.
        let error = prepare(Arc::new(SimTable::new()), 1, &origin(dir.path()), 9).unwrap_err();
        assert!(error.kind == ErrorKind::Conflict && error.message().contains("backup"), "{error}");
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 5, "{deaths} deaths");
}

#[tokio::test]
async fn a_crash_before_the_old_registry_is_marked_leaves_it_in_use() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 10).await;
    let table = Arc::new(SimTable::new());
    let dying = Arc::new(Dying { table: table.clone(), left: Mutex::new(Some(3)) });
    assert!(prepare(dying, 1, &origin(dir.path()), 7).is_err());
    table.crash(|n| n);
    // The release before is started again, and writes.
    let kv = LocalKv::open(dir.path()).unwrap();
    let revision = kv.txn(vec![], vec![KvOp::Put("k/00010".into(), "value 10".into())]).await.unwrap();
    let revision = revision.max(kv.txn(vec![], vec![KvOp::Delete("x".into())]).await.unwrap());
    drop(kv);
    prepare(table.clone(), 1, &origin(dir.path()), 7).unwrap();
    let machine = Machine::open(table, Limits::default()).unwrap().unwrap();
    assert_eq!(machine.revision(), revision);
    assert_eq!(machine.value("k/00010").unwrap(), "value 10");
}

#[test]
fn a_folder_of_another_member_is_refused() {
    let table = Arc::new(SimTable::new());
    let origin = Origin::Found { address: "here:1".into(), local: None };
    prepare(table.clone(), 1, &origin, 7).unwrap();
    assert_eq!(prepare(table.clone(), 2, &origin, 8).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(
        prepare(table.clone(), 1, &Origin::Join { group: 9 }, 8).unwrap_err().kind,
        ErrorKind::Invalid
    );
    assert_eq!(prepare(table, 1, &origin, 8).unwrap().group, 7);
}
