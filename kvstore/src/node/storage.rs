//! What raft reads: the log since its last compaction, in memory.

use crate::log::{Position, Recovered};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an entry takes in memory and in a message beside its data, roughly.
const OVERHEAD: usize = 64;

pub(super) struct Memory {
    hard: HardState,
    configuration: ConfState,
    floor: Position,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The state that a peer too far behind can have.
    snapshot: Option<Snapshot>,
    wanted: AtomicBool,
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + OVERHEAD
}

impl Memory {
    pub fn new(recovered: Recovered, configuration: ConfState) -> Self {
        let bytes = recovered.entries.iter().map(size).sum();
        Self {
            hard: recovered.hard,
            configuration,
            floor: recovered.floor,
            entries: recovered.entries.into(),
            bytes,
            snapshot: None,
            wanted: AtomicBool::new(false),
        }
    }

    /// Bytes of the entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn set_hard(&mut self, hard: HardState) {
        self.hard = hard;
    }

    /// Adds entries; they replace what is there from the first one on.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|e| e.index >= first.index) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        for entry in entries {
            self.bytes += size(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Drops the entries up to `floor`.
    pub fn compact(&mut self, floor: Position) {
        while self.entries.front().is_some_and(|e| e.index <= floor.index) {
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, size);
        }
        self.floor = floor;
        if self.snapshot.as_ref().is_some_and(|s| s.get_metadata().index < floor.index) {
            self.snapshot = None;
        }
    }

    /// The log goes on behind a snapshot of entry `at`.
    pub fn reset(&mut self, at: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.floor = at;
        self.snapshot = None;
    }

    /// The last entry not behind `limit` up to which at least `bytes` would be dropped.
    pub fn compaction(&self, bytes: usize, limit: u64) -> Option<Position> {
        let mut dropped = 0;
        let mut at = None;
        for entry in self.entries.iter().take_while(|e| e.index <= limit) {
            dropped += size(entry);
            at = Some(Position { index: entry.index, term: entry.term });
            if dropped >= bytes {
                break;
            }
        }
        at
    }

    /// Whether raft asked for a snapshot in vain since the last call.
    pub fn take_wanted(&mut self) -> bool {
        std::mem::take(self.wanted.get_mut())
    }

    pub fn set_snapshot(&mut self, snapshot: Option<Snapshot>) {
        self.snapshot = snapshot;
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.floor.index + 1)?).ok()?)
    }

    fn last(&self) -> u64 {
        self.floor.index + self.entries.len() as u64
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.configuration.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.floor.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0u64;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(entry) = self.get(index) else { break };
            bytes += size(entry) as u64;
            if !entries.is_empty() && bytes > max {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.floor.index {
            return Ok(self.floor.term);
        }
        if index < self.floor.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.get(index).map(|e| e.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.floor.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let usable = |s: &&Snapshot| {
            let meta = s.get_metadata();
            // Who was added later refuses a state that does not know him.
            let known = crate::machine::Configuration::from_raft(meta.get_conf_state()).contains(to);
            meta.index >= request_index && meta.index >= self.floor.index && known
        };
        match self.snapshot.as_ref().filter(usable) {
            Some(snapshot) => Ok(snapshot.clone()),
            None => {
                self.wanted.store(true, Ordering::Relaxed);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
