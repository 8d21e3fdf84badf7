//! The log's decoders under a fuzzer: headers, records, and a whole recovery from a segment that holds anything.

use super::record::{Position, RecordHeader, SECTOR, SegmentHeader, decode_items};
use super::{HEADER_BLOCK, Log, LogSettings, name_of};
use bytes::Bytes;
use common::Disk;
use common::sim::SimDisk;
use futures::executor::block_on;
use raft::eraftpb::HardState;
use std::sync::Arc;

/// The first byte says how the rest is read.
pub(crate) fn fuzz(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(header) = SegmentHeader::decode(Bytes::copy_from_slice(data)) {
                assert_eq!(SegmentHeader::decode(header.encode()).ok(), Some(header));
            }
        }
        1 => {
            if let Some(Ok(header)) = RecordHeader::decode(data) {
                let _ = (header.len(), header.crc(data));
            }
        }
        2 => {
            let _ = decode_items(Bytes::copy_from_slice(data), "record");
        }
        _ => recovery(data),
    }
}

/// A segment with a fine header: what follows is items in records with fine checksums (each begins with its length as u16), or
/// else bytes as they are.
fn recovery(data: &[u8]) {
    const SIZE: u64 = 64 << 10;
    let disk = Arc::new(SimDisk::new());
    let header = SegmentHeader {
        group: 1,
        member: 1,
        number: 1,
        size: SIZE,
        first_record: 1,
        prev_crc: 0,
        cut: Default::default(),
        hard: HardState::default(),
        floor: Position { index: 1, term: 1 },
        last: Position { index: 1, term: 1 },
    };
    let mut bytes = header.encode().to_vec();
    bytes.resize(HEADER_BLOCK as usize, 0);
    let (mut rest, mut crc, mut number) = (data, 0, 1);
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = u16::from_le_bytes(*length) as usize;
        if length >= 0x8000 || length > more.len() {
            bytes.extend_from_slice(more);
            break;
        }
        let record;
        (record, crc) = RecordHeader::seal(crc, number, 1, &more[..length]);
        bytes.extend_from_slice(&record);
        number += 1;
        rest = &more[length..];
    }
    bytes.truncate(SIZE as usize);
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    block_on(async {
        let Ok(file) = disk.create(&name_of(1), SIZE).await else { return };
        let written = file.write_at(0, &[bytes.into()]).await;
        if written.is_err() || file.sync().await.is_err() {
            return;
        }
        drop(file);
        let settings = LogSettings { segment_bytes: SIZE, record_bytes: 4096 };
        let base = Position { index: 1, term: 1 };
        let Ok((_, one)) = Log::open(disk.clone(), settings, 1, 1, base).await else { return };
        // What was taken for the end of the log stays its end.
        let two = Log::open(disk, settings, 1, 1, base).await;
        assert!(two.is_ok_and(|(_, two)| two == one), "a second recovery sees another log");
    });
}
