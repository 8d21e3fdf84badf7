//! Every decoder takes any bytes: the fuzz targets, run over the corpus that real runs left in
//! `tests/fuzz/corpus`, and over random changes of it.

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;
mod world;

use bytes::Bytes;
use common::sim::{SimClock, SimDisk};
use common::{BlockDevice, Clock, Disk, Epoch, Error, Lsn, ObjectStore, Table, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::journal::{Journal, JournalLoc, JournalSettings, Retired, Sink};
use volumedriver::log::{Kind, LogEntry, cluster_crcs};
use volumedriver::{Description, Settings};
use world::*;

const MINUTE: Duration = Duration::from_secs(60);

fn target(name: &str) -> fn(&[u8]) {
    let found = volumedriver::fuzzing::TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1
}

#[test]
fn objects_of_any_bytes_are_read_the_same_or_refused() {
    for name in ["envelope", "keys", "pool", "sco", "tlog", "manifest", "list", "index_page", "cache_segment"]
    {
        mutate::run(name, target(name), 8000);
    }
}

#[test]
fn a_journal_of_any_bytes_opens_or_is_refused() {
    mutate::run("journal_record", target("journal_record"), 10_000);
    mutate::run("journal_recovery", target("journal_recovery"), 3000);
}

#[test]
fn inspect_shows_any_bytes() {
    mutate::run("inspect", target("inspect"), 6000);
}

#[test]
fn settings_of_any_size_are_checked() {
    for mib in [0, 1 << 30, i64::MAX as u64, u64::MAX] {
        let all = Settings {
            journal_mib: mib,
            segment_mib: mib,
            buffer_mib: mib,
            read_cache_mib: mib,
            index_cache_mib: mib,
            ..Settings::default()
        };
        assert!(all.check().is_err(), "{mib} MiB");
        let segment = Settings { segment_mib: mib, ..Settings::default() };
        assert!(segment.check().is_err(), "{mib} MiB");
    }
}

#[test]
fn every_target_has_a_corpus() {
    for (name, _) in volumedriver::fuzzing::TARGETS {
        mutate::corpus(name);
    }
}

/// What a run left, by target and by what it is.
#[derive(Default)]
struct Left(BTreeMap<(&'static str, &'static str), Vec<Bytes>>);

impl Left {
    fn add(&mut self, target: &'static str, kind: &'static str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if bytes.len() < 64 << 10 {
            self.0.entry((target, kind)).or_default().push(bytes);
        }
    }

    /// Writes the shortest, the longest and the last of each kind.
    fn write(mut self) {
        for (target, _) in self.0.keys() {
            let folder = mutate::folder().join(target);
            std::fs::create_dir_all(&folder).unwrap();
            for old in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
                // What a finding left stays for ever.
                if old.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-")) {
                    std::fs::remove_file(old).unwrap();
                }
            }
        }
        for ((target, kind), all) in &mut self.0 {
            let last = all[all.len() - 1].clone();
            all.sort_by_key(Bytes::len);
            let some = [&all[0], &all[all.len() - 1], &last];
            for (i, bytes) in some.iter().enumerate().filter(|(i, bytes)| !some[..*i].contains(bytes)) {
                std::fs::write(mutate::folder().join(target).join(format!("run-{kind}-{i}")), bytes).unwrap();
            }
        }
    }
}

/// `cargo xtask fuzz --seed-corpus`: the corpora of this crate, from runs over the simulated doors.
#[tokio::test(start_paused = true)]
#[ignore = "writes tests/fuzz/corpus anew"]
async fn seed_corpus() {
    let mut left = Left::default();
    let settings = volumedriver::Settings { tlog_scos: 1, ..settings() };
    let mut world = World::new(41, settings, 64 << 20).await;
    let v = world.open().await.unwrap();
    for i in 0..3u64 {
        v.write(i * 3 * CLUSTER, vec![i as u8 + 1; 2 * CLUSTER as usize].into(), false).await.unwrap();
        v.discard((100 + i) * CLUSTER, 7 * CLUSTER, false).await.unwrap();
        v.write_zeroes(50 * CLUSTER, (1 + i) * CLUSTER, i == 1, false).await.unwrap();
        let about = Description {
            id: u128::from(i) + 1,
            name: format!("snapshot-{i}"),
            sticky: i == 1,
            metadata: vec![b'm'; 100 * i as usize].into(),
            ..Description::default()
        };
        left.add("snapshots", "marker", about.encode_marker(512).unwrap());
        v.snapshot(about).await.unwrap();
        v.drain(MINUTE).await.unwrap();
    }
    drop(v);
    world.kill();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    // So many TLogs that they move to list pages.
    for i in 0..1000u64 {
        v.write((i * 5 % 4096) * CLUSTER, cluster(i as u8), false).await.unwrap();
        v.drain(MINUTE).await.unwrap();
    }
    v.flush().await.unwrap();
    for key in world.store.keys() {
        let bytes = world.store.get(&key).await.unwrap();
        let kind = match bytes[10] {
            1 => "pool",
            2 => "manifest",
            3 => "sco",
            5 => "tlog",
            7 => "snapshots",
            _ => "list",
        };
        left.add("keys", kind, key.clone());
        left.add("envelope", kind, bytes.slice(..4096));
        left.add("envelope", "footer", bytes.slice(bytes.len() - 64..));
        if bytes.len() < 24 << 10 {
            left.add("inspect", kind, bytes.clone());
        }
        left.add(kind, kind, bytes);
    }
    for (_, row) in world.table.scan(&[], &[], 1 << 20).unwrap() {
        if row.len() == 4100 {
            left.add("index_page", "page", row);
        }
    }
    // Of one process with several segments, and of several processes.
    journals(&mut left, "one", &[20]).await;
    journals(&mut left, "many", &[5, 4, 3, 2]).await;
    left.write();
}

struct Deaf;

impl Sink for Deaf {
    fn retired(&self, entries: &mut dyn Iterator<Item = Retired>) {
        entries.for_each(drop);
    }
    fn relocated(&self, _: Epoch, _: Lsn, _: JournalLoc) {}
    fn failed(&self, _: &Error) {}
}

/// Processes write small segments, one after the other, each so many records; they are killed, the second is cut
/// from its power.
async fn journals(left: &mut Left, kind: &'static str, records: &[u64]) {
    let disk = SimDisk::new();
    let settings = JournalSettings {
        max_batch_bytes: 4 << 10,
        max_batch_entries: 3,
        ..JournalSettings::new(32 << 10, 1 << 20)
    };
    let mut chance = fastrand::Rng::with_seed(5);
    let mut lsn = 0;
    for (process, records) in (0..).zip(records) {
        let clock = Arc::new(SimClock::new(process));
        let (disk_of, mut registry) = (Arc::new(disk.process()), Default::default());
        let (journal, _) =
            Journal::open(settings.clone(), disk_of, clock.clone(), &mut registry).await.unwrap();
        let sink: Arc<dyn Sink> = Arc::new(Deaf);
        let volumes = [VolumeId(1), VolumeId(2)];
        for volume in volumes {
            journal.attach(volume, sink.clone()).await.unwrap();
        }
        clock.sleep(Duration::from_secs(1)).await;
        for i in 0..*records {
            lsn += 1;
            for volume in volumes {
                let count = [0, 1, 3][chance.usize(0..3)];
                let data = Bytes::from(vec![lsn as u8; count * 512]);
                let crcs = cluster_crcs(volume, lsn * 5, &data, 512);
                let kind = if count == 0 { Kind::Discard } else { Kind::Data };
                let count = if count == 0 { 9 } else { count as u64 };
                let entry = LogEntry {
                    volume,
                    epoch: Epoch(process + 1),
                    lsn: Lsn(lsn),
                    kind,
                    addr: lsn * 5,
                    count,
                    data,
                    crcs,
                };
                journal.submit(&sink, entry).unwrap();
            }
            journal.commit();
            if i % 3 == 1 {
                journal.sync().await.unwrap();
            }
            clock.sleep(Duration::from_millis(10)).await;
        }
        let image = dump(&disk, left).await;
        left.add("journal_recovery", kind, image);
        match process {
            1 => disk.crash(|| chance.bool()),
            _ => disk.kill(),
        }
    }
    let image = dump(&disk, left).await;
    left.add("journal_recovery", kind, image);
}

/// The used parts of all segments, one behind the other; each also by itself.
async fn dump(disk: &SimDisk, left: &mut Left) -> Vec<u8> {
    let mut image = Vec::new();
    for name in disk.list().await.unwrap() {
        let file = disk.open(&name).await.unwrap();
        let mut bytes = file.read_at(0, file.len() as usize).await.unwrap().to_vec();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| (last + 1).next_multiple_of(512));
        bytes.truncate(used);
        if used > 4096 {
            left.add("inspect", "segment", bytes.clone());
            let second = bytes[4097..].windows(4).position(|w| w == b"SRjr").map_or(used, |at| 4097 + at);
            left.add("journal_record", "header", bytes[..4096].to_vec());
            left.add("journal_record", "record", bytes[4096..second].to_vec());
        }
        image.extend_from_slice(&bytes);
    }
    image
}
