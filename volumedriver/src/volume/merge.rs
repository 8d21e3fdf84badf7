//! Merging TLogs: several of adjacent LSNs, read at once from one end of the addresses to the other; of
//! several entries for one address the youngest counts. Memory is a window of each, whatever their size.

use super::Shared;
use super::tlogs::Run;
use crate::format::manifest::TLogRef;
use crate::format::sco::ScoId;
use crate::format::tlog::{DictEntry, MAX_DICT, NO_DICT, TLog, TLogEntry};
use crate::log::Kind;
use crate::view::{Block, Source, Tree};
use common::{Error, Lsn, Result};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Bytes that are read at a time of one TLog, at most; of all together this bounds the memory.
const WINDOW: u64 = 1 << 20;
const WINDOWS: u64 = 16 << 20;

/// The smallest window.
const LEAST: u64 = 64 << 10;

/// Entries, and clusters, after which a TLog is cut, and the next one goes on with the addresses behind.
const CUT_ENTRIES: usize = 128 << 10;
const CUT_CLUSTERS: usize = 512 << 10;

/// A range of addresses that one entry decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// The run that says it, counted from the oldest.
    pub run: usize,
    pub addr: u64,
    pub count: u64,
    pub lsn: Lsn,
    pub kind: Kind,
    /// Where its clusters are: a SCO, its first slot there, and their checksums.
    pub at: Option<(ScoId, u32, &'a [u32])>,
}

/// Where a volume's TLogs are read from.
pub(super) fn source(shared: &Shared) -> Source<'_> {
    Source { store: &*shared.store, cache: &shared.maps, volume: shared.id }
}

/// One run of TLogs, read from one end to the other.
struct Cursor<'a> {
    shared: &'a Shared,
    run: usize,
    window: u64,
    left: VecDeque<TLogRef>,
    open: Option<(TLogRef, Arc<Tree>, usize)>,
    blocks: VecDeque<Block>,
    /// The entry in the first block, and its first checksum.
    entry: usize,
    crc: usize,
}

impl Cursor<'_> {
    /// Goes on to the entry that ends behind `addr`.
    async fn settle(&mut self, addr: u64) -> Result<()> {
        loop {
            while let Some(block) = self.blocks.front() {
                while let Some(e) = block.entries.get(self.entry) {
                    if e.addr + e.count > addr {
                        return Ok(());
                    }
                    self.crc += if e.kind == Kind::Data { e.count as usize } else { 0 };
                    self.entry += 1;
                }
                self.blocks.pop_front();
                (self.entry, self.crc) = (0, 0);
            }
            let Some((named, tree, next)) = &mut self.open else {
                let Some(named) = self.left.pop_front() else { return Ok(()) };
                let source = source(self.shared);
                let tree = self.shared.persist("reading a TLog", || source.tree(&named)).await?;
                let first = tree.index.find(addr).unwrap_or(0);
                self.open = Some((named, tree, first));
                continue;
            };
            // Whoever reads this long looks now and then whether the volume is still open.
            self.shared.core.lock().check()?;
            let source = source(self.shared);
            let read = || source.blocks(named, tree, *next, self.window);
            let (blocks, behind) = self.shared.persist("reading a TLog", read).await?;
            *next = behind;
            if blocks.is_empty() {
                self.open = None;
            }
            self.blocks.extend(blocks);
        }
    }

    fn entry(&self) -> Option<&TLogEntry> {
        self.blocks.front()?.entries.get(self.entry)
    }

    /// The part of the entry from `addr` to `end`.
    fn piece(&self, addr: u64, end: u64) -> Option<Piece<'_>> {
        let block = self.blocks.front()?;
        let e = block.entries.get(self.entry)?;
        let (_, tree, _) = self.open.as_ref()?;
        let (skip, count) = (addr - e.addr, end - addr);
        let at = match e.kind {
            Kind::Data => {
                let sco = tree.index.dict.get(e.dict as usize)?.id;
                let from = self.crc + skip as usize;
                Some((sco, e.slot + skip as u32, block.crcs.get(from..from + count as usize)?))
            }
            _ => None,
        };
        Some(Piece { run: self.run, addr, count, lsn: e.lsn, kind: e.kind, at })
    }
}

/// What several runs say together.
pub(super) struct Merge<'a> {
    /// The youngest first.
    cursors: Vec<Cursor<'a>>,
    at: u64,
}

impl<'a> Merge<'a> {
    /// Begins to read `runs`, the oldest first, with the address `at`.
    pub fn new(shared: &'a Shared, runs: &[Run], at: u64) -> Merge<'a> {
        let window = (WINDOWS / runs.len().max(1) as u64).clamp(LEAST, WINDOW);
        let cursor = |(number, run): (usize, &Run)| Cursor {
            shared,
            run: number,
            window,
            left: run.parts.iter().filter(|t| t.addr_hi > at).copied().collect(),
            open: None,
            blocks: VecDeque::new(),
            entry: 0,
            crc: 0,
        };
        Merge { cursors: runs.iter().enumerate().rev().map(cursor).collect(), at }
    }

    /// The next range that something is known of, by ascending address.
    pub async fn next(&mut self) -> Result<Option<Piece<'_>>> {
        let at = self.at;
        for cursor in &mut self.cursors {
            cursor.settle(at).await?;
        }
        let first = |c: &Cursor<'_>| c.entry().map(|e| e.addr.max(at));
        let Some(begin) = self.cursors.iter().filter_map(first).min() else { return Ok(None) };
        let Some(winner) = self.cursors.iter().position(|c| first(c) == Some(begin)) else { return Ok(None) };
        // Up to where a younger one begins.
        let mut end = self.cursors[winner].entry().map_or(begin, |e| e.addr + e.count);
        for younger in self.cursors[..winner].iter().filter_map(first) {
            end = end.min(younger);
        }
        self.at = end;
        let piece = self.cursors[winner].piece(begin, end);
        piece.map(Some).ok_or_else(|| Error::internal("a block of a TLog has lost its checksums"))
    }
}

/// Makes TLogs of pieces that come by ascending address, each of a part of the addresses.
pub(super) struct Builder {
    run: (Lsn, Lsn),
    tlog: TLog,
    named: BTreeMap<ScoId, u32>,
}

impl Builder {
    /// TLogs of these LSNs.
    pub fn new(run: (Lsn, Lsn)) -> Builder {
        Builder { run, tlog: empty(run, 0), named: BTreeMap::new() }
    }

    /// Adds a range; when there is enough for a TLog, that TLog. `len` tells the bytes of a SCO.
    pub fn add(&mut self, piece: Piece<'_>, len: impl Fn(ScoId) -> u64) -> Option<TLog> {
        let out = &mut self.tlog;
        let full = out.entries.len() >= CUT_ENTRIES
            || out.crcs.len() >= CUT_CLUSTERS
            || self.named.len() >= MAX_DICT;
        let full = full.then(|| {
            out.addr_hi = piece.addr;
            self.named.clear();
            std::mem::replace(out, empty(self.run, piece.addr))
        });
        let (mut dict, mut slot) = (NO_DICT, 0);
        if let Some((sco, first, crcs)) = piece.at {
            slot = first;
            dict = *self.named.entry(sco).or_insert_with(|| {
                out.dict.push(DictEntry { kind: sco.kind(), id: sco, len: len(sco), live_upper_bound: 0 });
                out.dict.len() as u32 - 1
            });
            out.dict[dict as usize].live_upper_bound += crcs.len() as u32;
            out.crcs.extend_from_slice(crcs);
        }
        let Piece { addr, count, lsn, kind, .. } = piece;
        if let Some(last) = out.entries.last_mut()
            && (last.addr + last.count, last.lsn, last.kind, last.dict) == (addr, lsn, kind, dict)
            && (kind != Kind::Data || u64::from(last.slot) + last.count == u64::from(slot))
        {
            last.count += count;
        } else {
            out.entries.push(TLogEntry { addr, count, lsn, kind, dict, slot });
        }
        full
    }

    /// The last of the TLogs.
    pub fn finish(self) -> TLog {
        self.tlog
    }
}

fn empty(run: (Lsn, Lsn), addr_lo: u64) -> TLog {
    TLog {
        lsn_lo: run.0,
        lsn_hi: run.1,
        addr_lo,
        addr_hi: u64::MAX,
        dict: Vec::new(),
        entries: Vec::new(),
        crcs: Vec::new(),
    }
}
