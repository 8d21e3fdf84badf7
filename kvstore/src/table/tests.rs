use super::*;
use common::ErrorKind;
use common::sim::SimTable;
use proptest::prelude::*;

fn small() -> RocksSettings {
    RocksSettings { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, ..RocksSettings::default() }
}

#[derive(Debug, Clone)]
enum Op {
    Write(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    DeletePrefix(Vec<u8>),
    Get(Vec<u8>),
    Scan(Vec<u8>, Vec<u8>, usize),
    Checkpoint,
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(7), Just(0xfe), Just(0xff)], 0..4)
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..20));
    prop_oneof![
        6 => prop::collection::vec((key(), value), 0..5).prop_map(Op::Write),
        2 => key().prop_map(Op::DeletePrefix),
        4 => key().prop_map(Op::Get),
        4 => (key(), key(), prop_oneof![1..5usize, Just(usize::MAX)]).prop_map(|(p, f, l)| Op::Scan(p, f, l)),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_simulated_table(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut table = RocksTable::open(dir.path(), small()).unwrap();
        let model = SimTable::new();
        for op in ops {
            match op {
                Op::Write(pairs) => {
                    let mut batch = Batch::default();
                    for (key, value) in pairs {
                        match value {
                            Some(value) => batch.put(key, value),
                            None => batch.delete(key),
                        }
                    }
                    table.write(batch.clone()).unwrap();
                    model.write(batch).unwrap();
                }
                Op::DeletePrefix(prefix) => {
                    table.delete_prefix(&prefix).unwrap();
                    model.delete_prefix(&prefix).unwrap();
                }
                Op::Get(key) => prop_assert_eq!(table.get(&key).unwrap(), model.get(&key).unwrap()),
                Op::Scan(prefix, from, limit) => prop_assert_eq!(
                    table.scan(&prefix, &from, limit).unwrap(),
                    model.scan(&prefix, &from, limit).unwrap()
                ),
                Op::Checkpoint => table.checkpoint().unwrap(),
                Op::Reopen => {
                    drop(table);
                    table = RocksTable::open(dir.path(), small()).unwrap();
                }
            }
        }
        prop_assert_eq!(table.scan(b"", b"", usize::MAX).unwrap(), model.scan(b"", b"", usize::MAX).unwrap());
    }
}

fn fill(table: &RocksTable, count: u32) {
    for n in 0..count {
        let mut batch = Batch::default();
        batch.put(n.to_be_bytes(), vec![n as u8; 1000]);
        table.write(batch).unwrap();
    }
}

#[test]
fn more_data_than_memory_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let table = RocksTable::open(dir.path(), small()).unwrap();
    fill(&table, 8000);
    table.checkpoint().unwrap();
    for n in (0..8000u32).step_by(97) {
        assert_eq!(table.get(&n.to_be_bytes()).unwrap().unwrap(), vec![n as u8; 1000]);
    }
    assert_eq!(table.scan(&[], &[], usize::MAX).unwrap().len(), 8000);
}

#[test]
fn an_open_table_is_held_and_a_closed_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let table = RocksTable::open(dir.path(), small()).unwrap();
    let error = RocksTable::open(dir.path(), small()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("held by another process"), "{error}");
    let error = RocksTable::destroy(dir.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "a table in use was destroyed: {error}");
    drop(table);
    RocksTable::open(dir.path(), small()).unwrap();
}

#[test]
fn a_damaged_table_is_corrupt_and_can_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let table = RocksTable::open(&path, small()).unwrap();
    fill(&table, 3000);
    drop(table);
    std::fs::write(path.join("CURRENT"), b"MANIFEST-nonsense\n").unwrap();
    let error = RocksTable::open(&path, small()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    RocksTable::destroy(&path).unwrap();
    assert!(!path.exists());
    RocksTable::destroy(&path).unwrap();
    let table = RocksTable::open(&path, small()).unwrap();
    assert_eq!(table.scan(&[], &[], 10).unwrap(), []);
}

#[test]
fn a_flipped_bit_in_a_table_file_is_corrupt_and_never_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let table = RocksTable::open(dir.path(), small()).unwrap();
    fill(&table, 6000);
    drop(table);
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "sst") {
            let mut data = std::fs::read(&path).unwrap();
            let middle = data.len() / 3;
            data[middle] ^= 0x10;
            std::fs::write(&path, data).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "nothing was flushed");
    let outcome = RocksTable::open(dir.path(), small()).and_then(|table| {
        for n in 0..6000u32 {
            if let Some(value) = table.get(&n.to_be_bytes())? {
                assert_eq!(value, vec![n as u8; 1000]);
            }
        }
        Ok(())
    });
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn the_end_of_a_prefix_is_the_first_key_behind_it() {
    assert_eq!(prefix_end(b"a"), Some(b"b".to_vec()));
    assert_eq!(prefix_end(&[1, 0xff, 0xff]), Some(vec![2]));
    assert_eq!(prefix_end(&[0xff, 0xff]), None);
    assert_eq!(prefix_end(&[]), None);
}
