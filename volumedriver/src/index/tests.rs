use super::rows::WATERMARK;
use super::*;
use common::Epoch;
use common::sim::SimTable;
use common::table::Batch;
use proptest::prelude::*;

const V: VolumeId = VolumeId(3);

fn of(head: &'static str) -> Of {
    Of { head: Bytes::from_static(head.as_bytes()), relocations: 0, above_parent: false }
}

fn sco(number: u64) -> ScoId {
    ScoId { epoch: Epoch(1), number }
}

fn all(index: &Index, count: u64) -> Vec<Mapped> {
    let mut out = Vec::new();
    index.lookup(0, count, &mut out).unwrap();
    out
}

#[derive(Debug, Clone)]
enum Op {
    Data(u64, u8),
    Zero(u64, u64),
    Discard(u64, u64),
    Checkpoint,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u64..2000, 1u8..60).prop_map(|(a, n)| Op::Data(a, n)),
        1 => (0u64..2000, 1u64..1500).prop_map(|(a, n)| Op::Zero(a, n)),
        1 => (0u64..2000, 1u64..1500).prop_map(|(a, n)| Op::Discard(a, n)),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Crash),
    ]
}

proptest! {
    /// The map is an array, its counts are those of the array, and a crash takes it back to the
    /// watermark, from where the same changes lead to the same map.
    #[test]
    fn behaves_like_an_array_and_comes_back_after_a_crash(
        ops in proptest::collection::vec(op(), 1..60),
        above_parent in any::<bool>(),
    ) {
        let of = Of { above_parent, ..of("a") };
        let table = Arc::new(SimTable::new());
        let budget = PageBudget::new(64 * Page::BYTES);
        let (mut index, _) = Index::open(V, table.clone(), budget.clone(), Lsn(0), of.clone()).unwrap();
        index.begin_anew(Lsn(0), true).unwrap();
        let mut model = vec![Mapped::Absent; 4096];
        let mut log: Vec<Op> = Vec::new();
        for op in ops {
            match op {
                Op::Checkpoint => index.checkpoint(Lsn(log.len() as u64)).unwrap(),
                Op::Crash => {
                    table.crash(|n| n / 2);
                    let (again, mark) = Index::open(V, table.clone(), budget.clone(), Lsn(log.len() as u64), of.clone()).unwrap();
                    index = again;
                    if mark == Lsn(0) {
                        index.begin_anew(mark, true).unwrap();
                    }
                    for (lsn, op) in log.iter().enumerate().skip(mark.0 as usize) {
                        apply(&index, lsn as u64 + 1, op);
                    }
                }
                change => {
                    log.push(change.clone());
                    apply(&index, log.len() as u64, &change);
                    model_apply(&mut model, log.len() as u64, &change, index.hole());
                }
            }
            prop_assert_eq!(&all(&index, 4096), &model);
        }
        for number in 1..=log.len() as u64 {
            let live = model.iter().filter(|m| matches!(m, Mapped::At(l) if l.sco() == sco(number))).count();
            prop_assert_eq!(index.live(sco(number)) as usize, live, "live clusters of SCO {}", number);
        }
        let dead = |lsn: &u64| matches!(log[*lsn as usize - 1], Op::Data(..)) && index.live(sco(*lsn)) == 0;
        prop_assert_eq!(index.dead_bytes(), (1..=log.len() as u64).filter(dead).count() as u64 * 1000);
    }
}

fn crcs(n: u8) -> Vec<u32> {
    (0..u32::from(n)).map(|i| i * 7 + 1).collect()
}

fn apply(index: &Index, lsn: u64, op: &Op) {
    match *op {
        Op::Data(addr, n) => {
            index.add_sco(sco(lsn), 1000, Lsn(lsn), Lsn(lsn));
            index.apply(&[Change::Data { addr, sco: sco(lsn), slot: 5, crcs: &crcs(n) }]).unwrap();
        }
        Op::Zero(addr, count) => index.apply(&[Change::Zero { addr, count }]).unwrap(),
        Op::Discard(addr, count) => index.apply(&[Change::Discard { addr, count }]).unwrap(),
        _ => {}
    }
}

fn model_apply(model: &mut [Mapped], lsn: u64, op: &Op, hole: Mapped) {
    match *op {
        Op::Data(addr, n) => {
            for (i, crc) in crcs(n).into_iter().enumerate() {
                model[addr as usize + i] = Mapped::At(Location::new(sco(lsn), 5 + i as u32, crc).unwrap());
            }
        }
        Op::Zero(addr, count) => model[addr as usize..(addr + count) as usize].fill(Mapped::Zero),
        Op::Discard(addr, count) => model[addr as usize..(addr + count) as usize].fill(hole),
        _ => {}
    }
}

#[test]
fn an_index_ahead_of_the_backend_or_damaged_is_dropped() {
    let table = Arc::new(SimTable::new());
    let budget = PageBudget::new(1 << 20);
    let (index, _) = Index::open(V, table.clone(), budget.clone(), Lsn(0), of("a")).unwrap();
    apply(&index, 1, &Op::Data(0, 3));
    index.checkpoint(Lsn(9)).unwrap();
    let (index, mark) = Index::open(V, table.clone(), budget.clone(), Lsn(8), of("a")).unwrap();
    assert_eq!((mark, all(&index, 3)), (Lsn(0), vec![Mapped::Absent; 3]));
    apply(&index, 1, &Op::Data(0, 3));
    index.checkpoint(Lsn(9)).unwrap();
    let mut batch = Batch::default();
    batch.put(key(V, WATERMARK, &[]), vec![99u8; 3]);
    table.write(batch).unwrap();
    let (index, mark) = Index::open(V, table, budget, Lsn(100), of("a")).unwrap();
    assert_eq!((mark, all(&index, 3)), (Lsn(0), vec![Mapped::Absent; 3]));
}

#[test]
fn a_range_of_64_tib_costs_the_pages_that_exist() {
    let (index, _) =
        Index::open(V, Arc::new(SimTable::new()), PageBudget::new(1 << 20), Lsn(0), of("a")).unwrap();
    let end = (64u64 << 40) / 4096;
    index.begin_anew(Lsn(0), true).unwrap();
    apply(&index, 1, &Op::Data(1_000_000, 3));
    apply(&index, 2, &Op::Zero(1, end - 1));
    let mut out = Vec::new();
    index.lookup(999_999, 3, &mut out).unwrap();
    index.lookup(end - 1, 1, &mut out).unwrap();
    assert_eq!(out, vec![Mapped::Zero; 4]);
    apply(&index, 3, &Op::Discard(0, end));
    index.checkpoint(Lsn(3)).unwrap();
    out.clear();
    index.lookup(999_999, 3, &mut out).unwrap();
    assert_eq!(out, vec![Mapped::Absent; 3]);
    assert_eq!(index.live(sco(1)), 0);
    assert_eq!(index.dead_bytes(), 1000);
}

#[test]
fn pages_beyond_the_budget_are_given_back_and_read_again() {
    let budget = PageBudget::new(64 * Page::BYTES);
    let (index, _) = Index::open(V, Arc::new(SimTable::new()), budget.clone(), Lsn(0), of("a")).unwrap();
    let pages = 500;
    for page in 0..pages {
        apply(&index, page + 1, &Op::Data(page * PAGE_CLUSTERS, 1));
        if index.checkpoint_due() {
            index.checkpoint(Lsn(page + 1)).unwrap();
        }
    }
    index.checkpoint(Lsn(pages)).unwrap();
    let mut out = Vec::new();
    for _ in 0..3 {
        for page in 0..pages {
            out.clear();
            index.lookup(page * PAGE_CLUSTERS, 1, &mut out).unwrap();
            assert!(matches!(out[0], Mapped::At(l) if l.sco() == sco(page + 1)));
        }
    }
    assert!(budget.used.load(Ordering::Relaxed) <= 64 + 8, "memory for pages is bounded");
}

#[test]
fn an_empty_index_is_filled_in_below_what_it_knows_already_and_goes_on_where_it_was() {
    let (table, budget) = (Arc::new(SimTable::new()), PageBudget::new(1 << 20));
    let (index, _) = Index::open(V, table.clone(), budget.clone(), Lsn(0), of("a")).unwrap();
    index.begin_anew(Lsn(5), false).unwrap();
    assert!(!index.is_whole());
    // Younger than the TLogs: data, and a discard that must hide what they say.
    apply(&index, 6, &Op::Data(10, 2));
    apply(&index, 7, &Op::Discard(20, 600));
    let old = sco(1);
    index.add_sco(old, 1000, Lsn(5), Lsn(5));
    let crcs = crcs(30);
    index.fill(&[Change::Data { addr: 0, sco: old, slot: 0, crcs: &crcs }], 30).unwrap();
    index.checkpoint(Lsn(7)).unwrap();
    let (index, mark) = Index::open(V, table.clone(), budget.clone(), Lsn(7), of("a")).unwrap();
    assert_eq!((mark, index.filled(), index.is_whole()), (Lsn(7), 30, false));
    index.fill(&[Change::Zero { addr: 30, count: 2000 }], u64::MAX).unwrap();
    assert!(index.is_whole());
    let map = all(&index, 2040);
    let of_old = |i: u64| Mapped::At(Location::new(old, i as u32, crcs[i as usize]).unwrap());
    assert_eq!((map[9], map[12], map[19]), (of_old(9), of_old(12), of_old(19)));
    assert!(matches!(map[10], Mapped::At(l) if l.sco() == sco(6)));
    assert_eq!((map[20], map[300], map[619]), (Mapped::Hole, Mapped::Hole, Mapped::Hole));
    assert_eq!(
        (map[620], map[1000], map[2029], map[2030]),
        (Mapped::Zero, Mapped::Zero, Mapped::Zero, Mapped::Absent)
    );
    assert_eq!(index.live(old), 20 - 2);
}

#[test]
fn what_was_moved_is_found_there_unless_it_was_overwritten_meanwhile() {
    let (table, budget) = (Arc::new(SimTable::new()), PageBudget::new(1 << 20));
    let (index, _) = Index::open(V, table.clone(), budget.clone(), Lsn(0), of("a")).unwrap();
    apply(&index, 1, &Op::Data(0, 2));
    let mut was = Vec::new();
    index.lookup(0, 2, &mut was).unwrap();
    apply(&index, 2, &Op::Data(1, 1));
    let new = ScoId { epoch: Epoch(1), number: crate::format::sco::FIRST_RELOC + 1 };
    index.add_sco(new, 500, Lsn(1), Lsn(5));
    let moves = was.iter().zip(0u32..).map(|(m, i)| match m {
        Mapped::At(from) => {
            Move { addr: u64::from(i), from: *from, to: Location::new(new, i, from.crc()).unwrap() }
        }
        _ => panic!("it is mapped"),
    });
    index.relocate(&moves.collect::<Vec<_>>(), 1).unwrap();
    let map = all(&index, 2);
    assert!(matches!(map[0], Mapped::At(l) if l.sco() == new && l.slot() == 0));
    assert!(matches!(map[1], Mapped::At(l) if l.sco() == sco(2)));
    assert_eq!((index.live(sco(1)), index.live(new), index.live(sco(2))), (0, 1, 1));
    // A copy of the map from before the move names what is gone.
    index.checkpoint(Lsn(2)).unwrap();
    let (_, mark) = Index::open(V, table.clone(), budget.clone(), Lsn(2), of("a")).unwrap();
    assert_eq!(mark, Lsn(0));
    index.checkpoint(Lsn(2)).unwrap();
    let now = Of { relocations: 1, ..of("a") };
    assert_eq!(Index::open(V, table, budget, Lsn(2), now).unwrap().1, Lsn(2));
}

#[test]
fn the_index_of_another_head_is_of_no_use() {
    let (table, budget) = (Arc::new(SimTable::new()), PageBudget::new(1 << 20));
    let (index, _) = Index::open(V, table.clone(), budget.clone(), Lsn(0), of("a")).unwrap();
    apply(&index, 1, &Op::Data(0, 3));
    index.checkpoint(Lsn(9)).unwrap();
    let (index, mark) = Index::open(V, table, budget, Lsn(9), of("b")).unwrap();
    assert_eq!((mark, all(&index, 3)), (Lsn(0), vec![Mapped::Absent; 3]));
}

/// A reader may have begun to look at the TLogs before the index was whole: what is discarded afterwards must not
/// be absent in the index, or the reader shows what the TLogs had.
#[test]
fn a_discard_hides_the_tlogs_also_when_the_index_has_become_whole() {
    let (table, budget) = (Arc::new(SimTable::default()), PageBudget::new(1 << 20));
    let (index, _) = Index::open(V, table, budget, Lsn(9), of("head")).unwrap();
    index.begin_anew(Lsn(5), false).unwrap();
    index.fill(&[Change::Zero { addr: 0, count: 4 }], u64::MAX).unwrap();
    assert!(index.is_whole());
    index.apply(&[Change::Discard { addr: 0, count: 3000 }]).unwrap();
    assert_eq!(all(&index, 3), [Mapped::Hole; 3]);
}
