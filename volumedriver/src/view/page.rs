//! Making a page of a map from TLogs: of each TLog its index and the blocks that may know the page.

use super::cache::{Block, Key, MapCache, Node, Tree};
use crate::format::keys;
use crate::format::manifest::TLogRef;
use crate::format::tlog;
use crate::index::page::{PAGE_CLUSTERS, Page};
use crate::index::{Location, Mapped};
use crate::log::Kind;
use bytes::Bytes;
use common::{Error, ObjectStore, Result, VolumeId};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// Bytes at the end of a TLog that usually hold its whole index.
const INDEX_GUESS: u64 = 128 << 10;

/// TLogs that are read at a time for one page.
const READS: usize = 8;

/// From where TLogs are read.
pub(crate) struct Source<'a> {
    pub store: &'a dyn ObjectStore,
    pub cache: &'a MapCache,
    pub volume: VolumeId,
}

/// The page that `tlogs` make, the youngest first: of several entries for one address the first counts.
pub(super) async fn build(source: &Source<'_>, tlogs: &[TLogRef], number: u64) -> Result<Arc<Page>> {
    let (from, to) = (number * PAGE_CLUSTERS, (number + 1) * PAGE_CLUSTERS);
    let mut page = Page::filled(Mapped::Absent);
    let mut unknown = PAGE_CLUSTERS;
    let overlapping = tlogs.iter().filter(|t| t.addr_lo < to && from < t.addr_hi);
    let reads: Vec<_> = overlapping.map(|named| blocks_of_page(source, named, from, to)).collect();
    let mut read = futures::stream::iter(reads).buffered(READS);
    while let Some((tree, blocks)) = read.try_next().await? {
        for block in blocks {
            unknown -= add(&mut page, &tree, &block, from, to)?;
        }
        if unknown == 0 {
            break;
        }
    }
    drop(read);
    Ok(Arc::from(page))
}

/// The blocks of a TLog that may know a page.
async fn blocks_of_page(
    source: &Source<'_>,
    named: &TLogRef,
    from: u64,
    to: u64,
) -> Result<(Arc<Tree>, Vec<Arc<Block>>)> {
    let tree = source.tree(named).await?;
    // The block before the first that begins in the page may reach into it.
    let first = tree.index.find(from).unwrap_or(0);
    let mut blocks = Vec::new();
    for at in first..tree.index.blocks.len() {
        if tree.index.blocks[at].first_addr >= to {
            break;
        }
        blocks.push(source.block(named, &tree, at).await?);
    }
    Ok((tree, blocks))
}

/// Puts the block's entries where the page knows nothing yet; how many clusters it knows more.
fn add(page: &mut Page, tree: &Tree, block: &Block, from: u64, to: u64) -> Result<u64> {
    let (mut crc, mut more) = (0, 0);
    for e in &block.entries {
        let crcs = crc;
        crc += if e.kind == Kind::Data { e.count as usize } else { 0 };
        for addr in e.addr.max(from)..(e.addr + e.count).min(to) {
            if page.get(addr - from) != Mapped::Absent {
                continue;
            }
            let skip = (addr - e.addr) as usize;
            let mapped = match e.kind {
                Kind::Data => {
                    let sco = tree.index.dict[e.dict as usize].id;
                    Mapped::At(Location::new(sco, e.slot + skip as u32, block.crcs[crcs + skip])?)
                }
                Kind::Zero => Mapped::Zero,
                _ => Mapped::Hole,
            };
            page.set(addr - from, mapped);
            more += 1;
        }
    }
    Ok(more)
}

impl Source<'_> {
    fn told<'e>(&self, named: &TLogRef) -> impl Fn(Error) -> Error + use<'e> {
        let key = keys::object_key(self.volume, &named.obj);
        move |e: Error| e.context(format!("TLog '{key}'"))
    }

    async fn range(&self, named: &TLogRef, range: std::ops::Range<u64>) -> Result<Bytes> {
        let key = keys::object_key(self.volume, &named.obj);
        self.store.get_range(&key, range).await.map_err(self.told(named))
    }

    /// Header and index of a TLog.
    pub async fn tree(&self, named: &TLogRef) -> Result<Arc<Tree>> {
        let key = Key::Tree { volume: self.volume, tlog: named.obj.id() };
        let make = || async { self.read_tree(named).await.map(|tree| Node::Tree(Arc::new(tree))) };
        match self.cache.get_or_make(key, make).await? {
            Node::Tree(tree) => Ok(tree),
            _ => Err(Error::internal("the map cache mixes its keys up")),
        }
    }

    async fn read_tree(&self, named: &TLogRef) -> Result<Tree> {
        let told = self.told(named);
        let len = named.obj.len;
        let (envelope, header) =
            tlog::decode_head(&self.range(named, 0..len.min(crate::format::BLOCK as u64)).await?)
                .map_err(&told)?;
        let from = len.saturating_sub(INDEX_GUESS);
        let end = self.range(named, from..len).await?;
        let footer = tlog::decode_footer(&end, len).map_err(&told)?;
        let (off, index_end) = (footer.index_off, footer.index_off + footer.index_len);
        let bytes = match off >= from {
            true => end.slice((off - from) as usize..(index_end - from) as usize),
            false => self.range(named, off..index_end).await?,
        };
        let index = tlog::decode_index(&envelope, &header, &footer, &bytes).map_err(&told)?;
        if envelope.volume != self.volume
            || (envelope.epoch, envelope.number) != (named.obj.epoch, named.obj.number)
            || (header.lsn_lo, header.lsn_hi) != (named.lsn_lo, named.lsn_hi)
            || footer.index_crc != named.obj.index_crc
        {
            return Err(told(Error::corrupt("it is not the one that the Manifest names")));
        }
        Ok(Tree { envelope, header, index })
    }

    /// Blocks from `first` on, about `bytes` of them, read at once and past the cache; the first that is left.
    pub async fn blocks(
        &self,
        named: &TLogRef,
        tree: &Tree,
        first: usize,
        bytes: u64,
    ) -> Result<(Vec<Block>, usize)> {
        let places = &tree.index.blocks[first..];
        let Some(begin) = places.first().map(|b| b.off) else { return Ok((Vec::new(), first)) };
        let n = places.iter().take_while(|b| b.off + u64::from(b.len) - begin <= bytes).count().max(1);
        let end = places[n - 1].off + u64::from(places[n - 1].len);
        let read = self.range(named, begin..end).await?;
        let mut blocks = Vec::with_capacity(n);
        for (place, number) in places[..n].iter().zip(first..) {
            let from = (place.off - begin) as usize;
            let bytes = read.get(from..from + place.len as usize).unwrap_or_default();
            let block = tlog::decode_block(&tree.envelope, &tree.header, &tree.index, number, bytes);
            let (entries, crcs) = block.map_err(self.told(named))?;
            blocks.push(Block { entries, crcs });
        }
        Ok((blocks, first + n))
    }

    pub(super) async fn block(&self, named: &TLogRef, tree: &Arc<Tree>, number: usize) -> Result<Arc<Block>> {
        let key = Key::Block { volume: self.volume, tlog: named.obj.id(), number };
        let make = || async {
            let place = tree.index.blocks[number];
            let bytes = self.range(named, place.off..place.off + u64::from(place.len)).await?;
            let block = tlog::decode_block(&tree.envelope, &tree.header, &tree.index, number, &bytes);
            let (entries, crcs) = block.map_err(self.told(named))?;
            Ok(Node::Block(Arc::new(Block { entries, crcs })))
        };
        match self.cache.get_or_make(key, make).await? {
            Node::Block(block) => Ok(block),
            _ => Err(Error::internal("the map cache mixes its keys up")),
        }
    }
}
