use super::*;
use common::sim::SimDisk;
use futures::executor::block_on;
use raft::eraftpb::EntryType;

const GROUP: u128 = 77;

fn settings() -> LogSettings {
    LogSettings { segment_bytes: 16 << 10, ..LogSettings::default() }
}

fn try_open(disk: &SimDisk) -> Result<(Log, Recovered)> {
    block_on(Log::open(Arc::new(disk.process()), settings(), GROUP, 1, Position { index: 1, term: 1 }))
}

fn open(disk: &SimDisk) -> (Log, Recovered) {
    try_open(disk).unwrap()
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    entry.set_entry_type(EntryType::EntryNormal);
    entry.data = vec![(index % 251) as u8 + 1; len].into();
    entry
}

fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

fn batch(entries: Vec<Entry>, hard: Option<HardState>) -> LogBatch {
    LogBatch { reset: None, entries, hard }
}

fn terms(recovered: &Recovered) -> Vec<(u64, u64)> {
    recovered.entries.iter().map(|e| (e.index, e.term)).collect()
}

/// The log as it should be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    hard: HardState,
    floor: Position,
    entries: Vec<Entry>,
}

impl Model {
    fn new() -> Self {
        Self { floor: Position { index: 1, term: 1 }, ..Self::default() }
    }

    fn last(&self) -> Position {
        self.entries.last().map_or(self.floor, |e| Position { index: e.index, term: e.term })
    }

    fn add(&mut self, batch: &LogBatch) {
        if let Some(at) = batch.reset {
            self.entries.clear();
            self.floor = at;
        }
        for entry in &batch.entries {
            self.entries.retain(|e| e.index < entry.index);
            self.entries.push(entry.clone());
        }
        self.hard = batch.hard.clone().unwrap_or_else(|| self.hard.clone());
    }

    fn compact(&mut self, at: Position) {
        self.floor = at;
        self.entries.retain(|e| e.index > at.index);
    }

    fn of(found: Recovered) -> Self {
        Self { hard: found.hard, floor: found.floor, entries: found.entries }
    }

    fn told(&self) -> String {
        let entries: Vec<_> = self.entries.iter().map(|e| (e.index, e.term, e.data.len())).collect();
        format!("{:?} behind {:?}: {entries:?}", self.hard, self.floor)
    }

    fn is(&self, found: &Recovered) -> bool {
        self.hard == found.hard && self.floor == found.floor && self.entries == found.entries
    }
}

#[test]
fn what_was_appended_is_there_and_a_conflicting_suffix_is_gone() {
    let disk = SimDisk::new();
    let (mut log, found) = open(&disk);
    assert!(Model::new().is(&found));
    block_on(
        log.append(&[batch(vec![entry(2, 1, 10), entry(3, 1, 3000), entry(4, 1, 0)], Some(hard(1, 2, 3)))]),
    )
    .unwrap();
    block_on(log.append(&[batch(vec![entry(3, 2, 5)], None), batch(vec![], Some(hard(2, 0, 3)))])).unwrap();
    disk.crash(|| false);
    let (_, found) = open(&disk);
    assert_eq!(terms(&found), [(2, 1), (3, 2)]);
    assert_eq!(found.hard, hard(2, 0, 3));
    assert_eq!(found.entries[0].data.len(), 10);
}

#[test]
fn what_is_too_much_for_one_record_takes_several() {
    let disk = SimDisk::new();
    let small = LogSettings { record_bytes: 4 << 10, ..settings() };
    let begun = Log::open(Arc::new(disk.process()), small, GROUP, 1, Position { index: 1, term: 1 });
    let (mut log, _) = block_on(begun).unwrap();
    let entries = (2..40).map(|i| entry(i, 1, 1500)).collect();
    block_on(log.append(&[batch(entries, Some(hard(1, 1, 30)))])).unwrap();
    assert!(log.next_record > 10, "{} records", log.next_record);
    disk.crash(|| false);
    let (_, found) = open(&disk);
    assert_eq!((found.entries.len(), found.hard), (38, hard(1, 1, 30)));
}

#[test]
fn a_snapshot_replaces_the_log() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    block_on(log.append(&[batch(vec![entry(2, 1, 10), entry(3, 1, 10)], Some(hard(1, 0, 1)))])).unwrap();
    let reset = Some(Position { index: 90, term: 4 });
    block_on(log.append(&[LogBatch { reset, entries: vec![entry(91, 4, 1)], hard: Some(hard(4, 0, 90)) }]))
        .unwrap();
    drop(log);
    disk.kill();
    let (_, found) = open(&disk);
    assert_eq!((found.floor, terms(&found)), (Position { index: 90, term: 4 }, vec![(91, 4)]));
}

#[test]
fn compaction_drops_segments_and_keeps_what_is_needed() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    for index in 2..200 {
        block_on(log.append(&[batch(vec![entry(index, 3, 1000)], Some(hard(3, 1, index - 1)))])).unwrap();
    }
    let before = block_on(disk.list()).unwrap().len();
    block_on(log.compact(Position { index: 150, term: 3 })).unwrap();
    let after = block_on(disk.list()).unwrap().len();
    assert!(before > 15 && after < 8, "{before} segments, then {after}");
    disk.crash(|| false);
    let (mut log, found) = open(&disk);
    assert_eq!((found.floor, found.entries.len()), (Position { index: 150, term: 3 }, 49));
    assert_eq!(found.hard, hard(3, 1, 198));
    block_on(log.append(&[batch(vec![entry(200, 3, 30_000)], None)])).unwrap();
    assert_eq!(open(&disk).1.entries.last().unwrap().data.len(), 30_000);
}

#[test]
fn restarts_without_writes_do_not_pile_up_segments() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    block_on(log.append(&[batch(vec![entry(2, 1, 10)], None)])).unwrap();
    for _ in 0..10 {
        disk.kill();
        open(&disk);
    }
    assert_eq!(block_on(disk.list()).unwrap().len(), 1);
}

/// Appends, compactions, snapshots, conflicts: what the model and the disk are after each of them, or after a death in one.
fn workload(random: &mut fastrand::Rng, disk: &SimDisk, before: Model, steps: usize) -> (Vec<Model>, bool) {
    let Ok((mut log, found)) = try_open(disk) else { return (vec![before], true) };
    assert!(before.is(&found), "it changed without anybody writing");
    let mut model = Model::of(found);
    let mut models = vec![model.clone()];
    for _ in 0..steps {
        let last = model.last();
        let term = last.term + u64::from(random.u8(..4) == 0);
        let (done, next) = match random.u8(..20) {
            0 => {
                let reset = Some(Position { index: last.index + random.u64(1..9), term });
                let batch = LogBatch { reset, entries: vec![], hard: Some(hard(term, 1, 0)) };
                let mut next = model.clone();
                next.add(&batch);
                (block_on(log.append(&[batch])), next)
            }
            1 | 2 if !model.entries.is_empty() => {
                let e = &model.entries[random.usize(..model.entries.len())];
                let at = Position { index: e.index, term: e.term };
                let mut next = model.clone();
                next.compact(at);
                (block_on(log.compact(at)), next)
            }
            _ => {
                let mut next = model.clone();
                let mut batches = Vec::new();
                for _ in 0..random.usize(1..3) {
                    let last = next.last();
                    let term = last.term.max(term);
                    let back = if random.u8(..5) == 0 { random.u64(..4) } else { 0 };
                    let first = (last.index + 1).saturating_sub(back).max(next.floor.index + 1);
                    let term = if first <= last.index { term + 1 } else { term };
                    let count = random.u64(..4);
                    let entries =
                        (first..first + count).map(|i| entry(i, term, random.usize(..3000))).collect();
                    let hard = (random.bool()).then(|| hard(term, random.u64(..4), last.index));
                    let batch = batch(entries, hard);
                    next.add(&batch);
                    batches.push(batch);
                }
                (block_on(log.append(&batches)), next)
            }
        };
        models.push(next.clone());
        if done.is_err() {
            return (models, true);
        }
        model = next;
    }
    (models, false)
}

#[test]
fn after_a_death_at_any_moment_there_is_all_that_returned_and_nothing_torn() {
    let mut deaths = 0;
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new();
        let mut before = Model::new();
        for life in 0..6 {
            disk.die_at_effect(Some(disk.effects() + random.u64(1..40)));
            let (models, died) = workload(&mut random, &disk, before, 25);
            deaths += u32::from(died);
            let power = random.bool();
            match power {
                true => disk.crash(|| random.bool()),
                false => disk.kill(),
            }
            disk.die_at_effect(None);
            let (_, found) = try_open(&disk).unwrap_or_else(|e| panic!("seed {seed}, life {life}: {e}"));
            // What was under way when it died may be there or not.
            let n = models.len();
            let candidates = if died { &models[n.saturating_sub(2)..] } else { &models[n - 1..] };
            assert!(
                candidates.iter().any(|m| m.is(&found)),
                "seed {seed}, life {life}, power cut {power}: {} is none of {:?}",
                Model::of(found).told(),
                candidates.iter().map(Model::told).collect::<Vec<_>>()
            );
            before = Model::of(found);
            disk.kill();
        }
    }
    assert!(deaths > 500, "only {deaths} deaths");
}

#[test]
fn a_flipped_bit_is_refused_by_name_or_changes_nothing() {
    let mut refused = 0;
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new();
        let (models, _) = workload(&mut random, &disk, Model::new(), 25);
        disk.kill();
        let names = block_on(disk.list()).unwrap();
        let name = &names[random.usize(..names.len())];
        // Only what was written: behind it a bit looks like the remains of a torn record, which are no harm.
        disk.flip_bit(name, random.usize(..12 << 10), random.u8(..8));
        match try_open(&disk) {
            Ok((_, found)) => {
                assert!(models.last().unwrap().is(&found), "seed {seed}: damage was taken for the truth")
            }
            Err(e) => {
                assert_eq!(e.kind, ErrorKind::Corrupt, "seed {seed}: {e}");
                assert!(e.message().contains(name.as_str()) || names.len() > 1, "seed {seed}: {e}");
                refused += 1;
            }
        }
    }
    assert!(refused > 150, "only {refused} of 300 were refused");
}

#[test]
fn a_lost_sector_in_the_middle_is_damage_and_at_the_end_a_torn_record() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    for index in 2..6 {
        block_on(log.append(&[batch(vec![entry(index, 1, 2000)], None)])).unwrap();
    }
    let name = name_of(1);
    let erase = |disk: &SimDisk, sector: usize| {
        let file = block_on(disk.open(&name)).unwrap();
        block_on(file.write_at((sector * 512) as u64, &[Bytes::from_static(&[0; 512])])).unwrap();
    };
    // Records take 5 sectors each, from sector 8 on.
    erase(&disk, 8 + 3 * 5 + 1);
    let (_, found) = open(&disk);
    assert_eq!(found.entries.len(), 3);
    // It was cut there, and goes on in the next segment.
    assert_eq!(block_on(disk.list()).unwrap().len(), 2);
    erase(&disk, 8 + 5);
    let error = try_open(&disk).err().unwrap();
    assert!(error.kind == ErrorKind::Corrupt && error.message().contains(&name), "{error}");
}

#[test]
fn a_failed_sync_ends_the_log() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    block_on(log.append(&[batch(vec![entry(2, 1, 10)], None)])).unwrap();
    disk.set_faults(common::sim::SimDiskFaults { failing_syncs: 1, ..Default::default() });
    assert!(block_on(log.append(&[batch(vec![entry(3, 1, 10)], None)])).is_err());
    assert!(block_on(log.append(&[batch(vec![entry(3, 1, 10)], None)])).is_err());
    disk.crash(|| true);
    assert_eq!(terms(&open(&disk).1), [(2, 1)]);
}

#[test]
fn a_full_disk_is_told_and_it_goes_on_when_there_is_room() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk);
    let full = |full| disk.set_faults(common::sim::SimDiskFaults { full, ..Default::default() });
    full(true);
    let error =
        (2..).find_map(|i| block_on(log.append(&[batch(vec![entry(i, 1, 3000)], None)])).err()).unwrap();
    assert_eq!(error.kind, ErrorKind::NoSpace);
    full(false);
    let next = log.last.index + 1;
    block_on(log.append(&[batch(vec![entry(next, 1, 3000)], None)])).unwrap();
    assert_eq!(open(&disk).1.entries.last().unwrap().index, next);
}

#[test]
fn the_log_of_another_member_is_refused() {
    let disk = SimDisk::new();
    drop(open(&disk));
    for (group, member) in [(GROUP, 2), (GROUP + 1, 1)] {
        let error =
            block_on(Log::open(Arc::new(disk.process()), settings(), group, member, Position::default()))
                .err()
                .unwrap();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
}
