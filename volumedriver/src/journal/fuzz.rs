//! Recovery of any bytes: whatever lies in the write buffer, opening it ends, what it hands over has the
//! checksums that it names, the journal can be written, and who opens it next finds the same and the new.

use super::recover::RecoveredEntry;
use super::segment::{self, HEADER_BLOCK, MAX_NUMBER, file_name};
use super::{Journal, JournalSettings, Retired, Sink, record};
use crate::log::{Crcs, Kind, LogEntry, cluster_crc};
use bytes::Bytes;
use common::crc::crc32c;
use common::sim::{SimClock, SimDisk};
use common::{Disk, Epoch, Error, Lsn, Result, VolumeId};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Where a segment may begin, and the least that a record is aligned to.
const SECTOR: usize = 512;
const SEGMENT: u64 = 32 << 10;
/// What is written after recovery: no corpus has it.
const WITNESS: VolumeId = VolumeId(0x7f5a_11ee);

/// The segments in `image`, which lie one behind the other: each begins with a magic at a sector.
fn segments(image: &[u8]) -> Vec<&[u8]> {
    let is_start = |at: &usize| image[*at..].starts_with(b"SRjs");
    let mut starts: Vec<usize> = (0..image.len()).step_by(SECTOR).filter(is_start).collect();
    if starts.first() != Some(&0) {
        starts.insert(0, 0);
    }
    let ends = starts.iter().copied().skip(1).chain([image.len()]);
    starts.iter().zip(ends).map(|(from, to)| &image[*from..to]).collect()
}

/// The same with the checksums of headers made right, and each record naming the one before it.
pub(crate) fn with_checksums(image: &[u8]) -> Vec<u8> {
    let mut fixed = Vec::with_capacity(image.len());
    for bytes in segments(image) {
        let mut bytes = segment::with_checksum(bytes);
        let mut before: Option<[u8; 4]> = None;
        for at in (HEADER_BLOCK as usize..bytes.len()).step_by(SECTOR) {
            let Ok(len) = record::claimed_header_len(&bytes[at..]) else { continue };
            let Some(header) = bytes.get_mut(at..at + len) else { continue };
            if let Some(crc) = before {
                header[80..84].copy_from_slice(&crc);
            }
            let sealed = record::with_checksum(header);
            header.copy_from_slice(&sealed);
            before = sealed.last_chunk().copied();
        }
        fixed.extend_from_slice(&bytes);
    }
    fixed
}

struct Deaf;

impl Sink for Deaf {
    fn retired(&self, entries: &mut dyn Iterator<Item = Retired>) {
        entries.for_each(drop);
    }
    fn relocated(&self, _: Epoch, _: Lsn, _: super::JournalLoc) {}
    fn failed(&self, _: &Error) {}
}

/// Opens a journal on `image`, twice.
#[allow(clippy::expect_used)]
pub(crate) fn recover(image: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let disk = SimDisk::new();
        if put(&disk, image).await.is_ok() {
            // Time is virtual: it runs out when everyone waits for somebody else.
            // A process draws its identity: no image can know that of the one that opens it.
            let chance = u64::from(crc32c(image)) << 32;
            let opened = tokio::time::timeout(Duration::from_secs(3600), open(&disk, chance));
            opened.await.expect("recovery never ends");
        }
    });
}

async fn put(disk: &SimDisk, image: &[u8]) -> Result<()> {
    for (i, bytes) in segments(image).into_iter().enumerate() {
        // A segment is called by the number that it names, unless another one was first.
        let named = bytes.get(40..48).and_then(|n| n.first_chunk()).map_or(0, |n| u64::from_le_bytes(*n));
        let file = match disk.create(&file_name(named % MAX_NUMBER), bytes.len() as u64).await {
            Ok(file) => file,
            Err(_) => disk.create(&file_name((1 << 40) + i as u64), bytes.len() as u64).await?,
        };
        file.write_at(0, &[Bytes::copy_from_slice(bytes)]).await?;
    }
    Ok(())
}

/// What there is of each volume, without where it lies, and a checksum in place of the content.
type Found = BTreeMap<VolumeId, Vec<(Epoch, Lsn, Kind, u64, u64, u32)>>;

#[allow(clippy::expect_used)]
async fn open(disk: &SimDisk, chance: u64) {
    let Ok((journal, mut first)) = start(disk, chance + 1).await else { return };
    assert!(!first.contains_key(&WITNESS) || first[&WITNESS].len() < 1000);
    let data = Bytes::from_static(&[7; SECTOR]);
    let next = first.get(&WITNESS).and_then(|all| all.last()).map_or(0, |last| last.1.0);
    // A volume whose numbers ran out writes no more.
    if let Some(lsn) = next.checked_add(1) {
        let crcs = Crcs::from_slice(&[cluster_crc(WITNESS, 3, &data)]);
        let entry = LogEntry {
            volume: WITNESS,
            epoch: Epoch(1),
            lsn: Lsn(lsn),
            kind: Kind::Data,
            addr: 3,
            count: 1,
            data: data.clone(),
            crcs,
        };
        let sink: Arc<dyn Sink> = Arc::new(Deaf);
        journal.submit(&sink, entry).expect("the journal takes entries");
        journal.commit();
        first.entry(WITNESS).or_default().push((Epoch(1), Lsn(lsn), Kind::Data, 3, 1, crc32c(&data)));
    }
    journal.close().await;
    assert_eq!(journal.problem(), None, "it stopped by itself");
    drop(journal);
    disk.kill();
    let (journal, second) = start(disk, chance + 2).await.expect("what was opened once opens again");
    assert!(first == second, "recovery of what was recovered:\n{first:?}\n{second:?}");
    journal.close().await;
}

/// A process that opens the journal and takes every volume.
async fn start(disk: &SimDisk, seed: u64) -> Result<(Arc<Journal>, Found)> {
    let settings = JournalSettings::new(SEGMENT, 1 << 40);
    let clock = Arc::new(SimClock::new(seed));
    let mut registry = Registry::default();
    let (journal, recovered) =
        Journal::open(settings, Arc::new(disk.process()), clock, &mut registry).await?;
    let mut found = Found::new();
    for volume in recovered.volumes.keys().copied().chain([WITNESS]) {
        let Ok(kept) = journal.attach(volume, Arc::new(Deaf)).await else { continue };
        let mut entries = Vec::new();
        for e in &kept.entries {
            entries.push((e.epoch, e.lsn, e.kind, e.addr, e.count, crc32c(&content(volume, e).await?)));
        }
        if !entries.is_empty() {
            found.insert(volume, entries);
        }
    }
    Ok((journal, found))
}

/// The content of an entry, whose checksums are right.
async fn content(volume: VolumeId, e: &RecoveredEntry) -> Result<Bytes> {
    let data = e.loc.read(0, e.loc.len()).await?;
    if e.kind == Kind::Data {
        assert_eq!(e.crcs.len() as u64, e.count, "one checksum for each cluster");
        for ((cluster, addr), crc) in data.chunks(data.len() / e.crcs.len()).zip(e.addr..).zip(&e.crcs) {
            assert_eq!(cluster_crc(volume, addr, cluster), *crc, "the content was verified");
        }
    }
    Ok(data)
}
