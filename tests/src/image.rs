//! A vPool with one large vDisk, made without a router: SCOs, TLogs, list pages and Manifests by the format's
//! own codecs, as a router that wrote all of it would have left them.
//!
//! So that a map of many GiB takes little room, a SCO has a few slots only, and many addresses of its TLog
//! share them; their checksums differ, as they cover the address. (`fsck` tells that slots are shared.) Which mapping an address has is computed,
//! never remembered: mapping i is at `Scatter::at(i)`, and one in sixteen rewrites an address of the TLog before.

use crate::block::{BLOCK, Stamp};
use crate::scatter::Scatter;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use common::{Epoch, Lsn, VolumeId};
use std::path::{Path, PathBuf};
use volumedriver::format::envelope::{Envelope, ObjectKind};
use volumedriver::format::manifest::manifest_crc;
use volumedriver::format::{
    DictEntry, HistoryEntry, Manifest, ManifestKind, MapEntry, PoolObject, ScoHeader, ScoId, ScoIndex, TLog,
    TLogEntry, TLogRef, Tail, keys, list, sco, tlog,
};
use volumedriver::log::{Kind, cluster_crc};

/// The volume of a generated image.
pub const VOLUME: VolumeId = VolumeId(0x7e57_0000_0000_4000_8000_0000_0000_0001);
/// Clusters in each SCO.
const SLOTS: u64 = 4;
/// LSNs of each SCO, as with the SCOs of 8 MiB that a router writes.
const LSNS: u64 = 2048;
/// One mapping of so many goes to an address of the TLog before.
const REWRITES: u64 = 16;
/// Names TLogs by hand: the youngest stay in the Manifest.
const INLINE: usize = 8;
const EPOCH: Epoch = Epoch(1);
const WRITER: u128 = 0x6d61_6465_2062_7920_6861_6e64;

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Bytes of the volume.
    pub size: u64,
    /// TLogs.
    pub tlogs: u64,
    /// Entries of each, a multiple of 2048.
    pub entries: u64,
}

/// A generated image, and what must be read from it.
#[derive(Debug)]
pub struct Image {
    shape: Shape,
    scatter: Scatter,
}

impl Image {
    /// Makes a vPool in `store`, which is not there yet. Takes some 100 bytes of memory for each entry of a TLog.
    pub fn generate(store: &Path, name: &str, shape: Shape) -> Result<Image> {
        ensure!(shape.entries.is_multiple_of(LSNS), "whole SCOs only");
        ensure!(shape.tlogs * shape.entries <= shape.size / BLOCK as u64, "more mappings than addresses");
        let image = Image { shape, scatter: Scatter::new(shape.size / BLOCK as u64, 11) };
        let put = Put { store: store.into() };
        std::fs::create_dir(store).with_context(|| store.display().to_string())?;
        let pool = PoolObject { id: 1, name: "generated".into(), cluster_log2: 12, created: 1 };
        put.object(keys::POOL, &[pool.encode(WRITER)?])?;
        let mut manifest = first_manifest(name, shape);
        let bytes = manifest.encode()?;
        put.object(&keys::manifest_key(VOLUME, 1), std::slice::from_ref(&bytes))?;
        manifest.prev_crc = manifest_crc(&bytes);

        let mut tlogs = Vec::new();
        for t in 0..shape.tlogs {
            tlogs.push(image.tlog(&put, t)?);
        }
        let paged = tlogs.len().saturating_sub(INLINE);
        if paged > 0 {
            let envelope = envelope(ObjectKind::ListPage, shape.tlogs + 1);
            let (bytes, page) = list::encode(&envelope, &tlogs[..paged])?;
            put.object(&keys::list_key(VOLUME, EPOCH, shape.tlogs + 1), &[bytes])?;
            manifest.pages.push(page);
        }
        manifest.kind = ManifestKind::Normal;
        manifest.number = 2;
        manifest.tlogs = tlogs.split_off(paged);
        let last = Lsn(shape.tlogs * shape.entries);
        manifest.tlog_lsn = last;
        manifest.tail = Tail { epoch: EPOCH, first_sco: last.0 / LSNS + 1 };
        manifest.history = Vec::<HistoryEntry>::new();
        put.object(&keys::manifest_key(VOLUME, 2), &[manifest.encode()?])?;
        Ok(image)
    }

    /// TLog `t` and its SCOs.
    fn tlog(&self, put: &Put, t: u64) -> Result<TLogRef> {
        let Shape { entries, .. } = self.shape;
        let scos = entries / LSNS;
        let mut dict = Vec::with_capacity(scos as usize);
        let mut contents = Vec::with_capacity((scos * SLOTS) as usize);
        for k in 0..scos {
            let number = t * scos + k + 1;
            let slots: Vec<Bytes> = (0..SLOTS).map(|slot| content(number, slot)).collect();
            let len = self.sco(put, number, &slots)?;
            let id = ScoId { epoch: EPOCH, number };
            let live_upper_bound = SLOTS as u32;
            dict.push(DictEntry { kind: ObjectKind::LogSco, id, len, live_upper_bound });
            contents.extend(slots);
        }
        let mut order: Vec<(u64, u32)> =
            (0..entries as u32).map(|j| (self.address(t, j.into()), j)).collect();
        order.sort_unstable();
        let mut made = TLog {
            lsn_lo: Lsn(t * entries + 1),
            lsn_hi: Lsn((t + 1) * entries),
            addr_lo: 0,
            addr_hi: u64::MAX,
            dict,
            entries: Vec::with_capacity(order.len()),
            crcs: Vec::with_capacity(order.len()),
        };
        for (addr, j) in order {
            let (sco, slot) = place(j.into());
            let cluster = &contents[(sco * SLOTS + slot) as usize];
            made.crcs.push(cluster_crc(VOLUME, addr, cluster));
            let lsn = Lsn(made.lsn_lo.0 + u64::from(j));
            let (dict, slot) = (sco as u32, slot as u32);
            made.entries.push(TLogEntry { addr, count: 1, lsn, kind: Kind::Data, dict, slot });
        }
        let (bytes, obj) = tlog::encode(&envelope(ObjectKind::TLog, t + 1), &made)?;
        put.object(&keys::tlog_key(VOLUME, EPOCH, t + 1), &[bytes])?;
        Ok(TLogRef {
            obj,
            lsn_lo: made.lsn_lo,
            lsn_hi: made.lsn_hi,
            addr_lo: 0,
            addr_hi: u64::MAX,
            sco_bytes: made.dict.iter().map(|d| d.len).sum(),
        })
    }

    /// SCO `number`; its length. Its own index names each slot once, by the address that has it first.
    fn sco(&self, put: &Put, number: u64, slots: &[Bytes]) -> Result<u64> {
        let (first, per_tlog) = ((number - 1) * LSNS, self.shape.entries);
        let (t, j) = (first / per_tlog, first % per_tlog);
        // Entries j + 1 and on: the first of a SCO rewrites an address of the TLog before.
        let mut named: Vec<(u64, u64)> = (1..=SLOTS).map(|i| (self.address(t, j + i), j + i)).collect();
        named.sort_unstable();
        let (mut index, mut clusters) = (ScoIndex::default(), Vec::new());
        for ((addr, j), slot) in named.into_iter().zip(0..) {
            let cluster = &slots[slot as usize];
            index.crcs.push(cluster_crc(VOLUME, addr, cluster));
            let lsn = Lsn(t * per_tlog + j + 1);
            index.entries.push(MapEntry { addr, count: 1, lsn, kind: Kind::Data, slot });
            clusters.push(cluster.clone());
        }
        let header = ScoHeader {
            lsn_lo: Lsn(first + 1),
            lsn_hi: Lsn(first + LSNS),
            committed_sco: number - 1,
            cluster_log2: 12,
            codec: 0,
        };
        let parts = sco::encode(&envelope(ObjectKind::LogSco, number), &header, &index, clusters)?;
        put.object(&keys::sco_key(VOLUME, ScoId { epoch: EPOCH, number }), &parts)?;
        Ok(parts.iter().map(|part| part.len() as u64).sum())
    }

    /// The address of entry `j` of TLog `t`.
    fn address(&self, t: u64, j: u64) -> u64 {
        let i = t * self.shape.entries + j;
        // The neighbour of this place in the TLog before; it is never a rewrite itself.
        let i = if t > 0 && j.is_multiple_of(REWRITES) { i - self.shape.entries + 1 } else { i };
        self.scatter.at(i)
    }

    /// Mappings, shadowed ones included.
    pub fn mappings(&self) -> u64 {
        self.shape.tlogs * self.shape.entries
    }

    /// An address and the content that it must have, for any number: those below [`Image::mappings`] are
    /// mapped but for one in sixteen, all others are holes.
    pub fn expected(&self, i: u64) -> (u64, Option<Bytes>) {
        let addr = self.scatter.at(i);
        let Shape { tlogs, entries, .. } = self.shape;
        let (t, j) = (i / entries, i % entries);
        if t >= tlogs || (t > 0 && j.is_multiple_of(REWRITES)) {
            return (addr, None);
        }
        // Rewritten by the next TLog?
        let (t, j) = if j % REWRITES == 1 && t + 1 < tlogs { (t + 1, j - 1) } else { (t, j) };
        let (sco, slot) = place(j);
        (addr, Some(content(t * (entries / LSNS) + sco + 1, slot)))
    }
}

/// In which SCO of its TLog, and in which slot, entry `j` has its content.
fn place(j: u64) -> (u64, u64) {
    (j / LSNS, j % SLOTS)
}

fn content(sco: u64, slot: u64) -> Bytes {
    let mut block = vec![0; BLOCK];
    Stamp { volume: 0, address: slot, writer: 0, sequence: sco, previous: 0 }.encode(&mut block);
    block.into()
}

fn envelope(kind: ObjectKind, number: u64) -> Envelope {
    Envelope { kind, volume: VOLUME, epoch: EPOCH, number, writer: WRITER, compat: 0 }
}

fn first_manifest(name: &str, shape: Shape) -> Manifest {
    Manifest {
        kind: ManifestKind::Fence,
        volume: VOLUME,
        epoch: EPOCH,
        number: 1,
        writer: WRITER,
        prev_crc: 0,
        name: name.into(),
        size: shape.size,
        cluster_log2: 12,
        sco_size: (LSNS as u32) << 12,
        created_at: 1,
        deleted_at: 0,
        parent: None,
        tail: Tail { epoch: EPOCH, first_sco: 1 },
        tlog_lsn: Lsn(0),
        history: Vec::new(),
        head: Vec::new(),
        pages: Vec::new(),
        tlogs: Vec::new(),
        snapshots: Vec::new(),
        relocations: 0,
    }
}

/// Writes objects as files.
struct Put {
    store: PathBuf,
}

impl Put {
    fn object(&self, key: &str, parts: &[Bytes]) -> Result<()> {
        let path = self.store.join(key);
        std::fs::create_dir_all(path.parent().context("a key without a folder")?)?;
        std::fs::write(&path, parts.concat()).with_context(|| path.display().to_string())
    }
}
