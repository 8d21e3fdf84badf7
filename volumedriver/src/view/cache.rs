//! Memory for maps that are read from TLogs: their indexes, their blocks, and pages made of those.

use crate::format::sco::ScoId;
use crate::format::tlog::{TLogEntry, TLogHeader, TLogIndex};
use crate::format::{DictEntry, Envelope};
use crate::index::page::Page;
use common::{Result, VolumeId};
use foldhash::fast::FixedState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What something in the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Header and index of a TLog.
    Tree { volume: VolumeId, tlog: ScoId },
    /// A block of a TLog.
    Block { volume: VolumeId, tlog: ScoId, number: usize },
    /// A page of a map.
    Page { map: u64, number: u64 },
}

/// Header and index of a TLog.
pub(crate) struct Tree {
    pub envelope: Envelope,
    pub header: TLogHeader,
    pub index: TLogIndex,
}

/// Entries of a block, and the checksums of their clusters.
pub(crate) struct Block {
    pub entries: Vec<TLogEntry>,
    pub crcs: Vec<u32>,
}

/// Something in the cache.
#[derive(Clone)]
pub(super) enum Node {
    Tree(Arc<Tree>),
    Block(Arc<Block>),
    Page(Arc<Page>),
}

#[derive(Clone)]
struct ByMemory;

impl Weighter<Key, Node> for ByMemory {
    fn weight(&self, _: &Key, node: &Node) -> u64 {
        const OVERHEAD: usize = 128;
        let bytes = match node {
            Node::Tree(tree) => tree.index.blocks.len() * 32 + tree.index.dict.len() * size_of::<DictEntry>(),
            Node::Block(block) => block.entries.len() * size_of::<TLogEntry>() + block.crcs.len() * 4,
            Node::Page(_) => Page::BYTES as usize,
        };
        (bytes + OVERHEAD) as u64
    }
}

/// See the module's head.
pub(crate) struct MapCache {
    /// Hashed the same way in each run, so that a simulation is the same again.
    cache: Cache<Key, Node, ByMemory, FixedState>,
    maps: AtomicU64,
}

impl MapCache {
    /// A cache of at most `bytes`.
    pub fn new(bytes: u64) -> Self {
        let items = (bytes / 4096).max(16) as usize;
        Self {
            cache: Cache::with(items, bytes, ByMemory, FixedState::default(), DefaultLifecycle::default()),
            maps: AtomicU64::new(0),
        }
    }

    /// A number that no other map of this cache has.
    pub(super) fn next_map(&self) -> u64 {
        self.maps.fetch_add(1, Ordering::Relaxed)
    }

    /// What is there, or what `make` gives: once, however many ask.
    pub(super) async fn get_or_make<F>(&self, key: Key, make: impl FnOnce() -> F) -> Result<Node>
    where
        F: Future<Output = Result<Node>>,
    {
        self.cache.get_or_insert_async(&key, make()).await
    }
}
