//! From an object to its fragments and back: frames are compressed, sealed or summed, and lie one behind the other.

use super::erasure::Code;
use super::shape::{MAX_OBJECT, Plan, Shape, TAG, frames};
use super::{Encoded, ObjectId};
use crate::alba::keys::ObjectKey;
use crate::alba::preset::Compression;
use bytes::{Bytes, BytesMut};
use common::crc::{crc32c, crc32c_parts};
use common::{Error, Result};
use std::ops::Range;

/// A frame that is not what was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFrame {
    /// Which one.
    pub frame: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// What a frame's seal also vouches for: that it is this frame of this object, and how to read it.
fn vouched(shape: &Vouched, frame: usize) -> [u8; 37] {
    let mut what = [0; 37];
    what[..16].copy_from_slice(&shape.id.0.to_le_bytes());
    what[16..20].copy_from_slice(&(frame as u32).to_le_bytes());
    what[20..24].copy_from_slice(&(frames(shape.len, shape.frame_size) as u32).to_le_bytes());
    what[24..32].copy_from_slice(&shape.len.to_le_bytes());
    what[32..36].copy_from_slice(&shape.frame_size.to_le_bytes());
    what[36] = u8::from(shape.zstd);
    what
}

struct Vouched {
    id: ObjectId,
    len: u64,
    frame_size: u32,
    zstd: bool,
}

fn summed(id: ObjectId, frame: usize, packed: &[&[u8]]) -> u32 {
    let (id, number) = (id.0.to_le_bytes(), (frame as u32).to_le_bytes());
    let mut parts: Vec<&[u8]> = vec![&id, &number];
    parts.extend(packed);
    crc32c_parts(&parts)
}

/// Pieces that lie one behind the other, read from the front.
struct Rope<'a> {
    pieces: &'a [Bytes],
    piece: usize,
    at: usize,
}

impl<'a> Rope<'a> {
    fn new(pieces: &'a [Bytes]) -> Self {
        Self { pieces, piece: 0, at: 0 }
    }

    /// The slices of the next `n` bytes; fewer when there are no more.
    fn take(&mut self, mut n: usize) -> Vec<&'a [u8]> {
        let mut slices = Vec::with_capacity(1);
        while n > 0
            && let Some(piece) = self.pieces.get(self.piece)
        {
            let now = n.min(piece.len() - self.at);
            if now > 0 {
                slices.push(&piece[self.at..self.at + now]);
            }
            (n, self.at) = (n - now, self.at + now);
            if self.at == piece.len() {
                (self.piece, self.at) = (self.piece + 1, 0);
            }
        }
        slices
    }
}

/// Lays an object out: its shape, and its fragments.
///
/// # Errors
/// `Invalid` when it is too long; `Internal`.
pub fn encode(
    parts: &[Bytes],
    id: ObjectId,
    plan: &Plan,
    compression: Compression,
    key: Option<&ObjectKey>,
) -> Result<Encoded> {
    let len = parts.iter().map(|p| p.len() as u64).sum::<u64>();
    let n = frames(len.min(MAX_OBJECT + 1), plan.frame_size);
    if len > MAX_OBJECT || n > super::shape::MAX_FRAMES {
        return Err(Error::invalid(format!(
            "an object of {len} bytes is too long for frames of {}: at most {} bytes",
            plan.frame_size,
            MAX_OBJECT.min(super::shape::MAX_FRAMES as u64 * u64::from(plan.frame_size))
        )));
    }
    let (shape, stream) = if compression == Compression::None && key.is_none() {
        let mut rope = Rope::new(parts);
        let crcs = (0..n).map(|frame| summed(id, frame, &rope.take(plan.frame_size as usize))).collect();
        let shape = Shape::new(id, len, plan, None, crcs)?;
        let stream = match parts {
            [whole] => whole.clone(),
            parts => concat(parts, shape.fragment_len as usize * plan.policy.data()),
        };
        (shape, stream)
    } else {
        pack(parts, len, id, plan, compression, key)?
    };
    fragments(shape, stream)
}

/// The parts in one piece, with room behind them for zeroes up to `whole`.
fn concat(parts: &[Bytes], whole: usize) -> Bytes {
    let mut stream = BytesMut::with_capacity(whole);
    parts.iter().for_each(|part| stream.extend_from_slice(part));
    stream.freeze()
}

fn pack(
    parts: &[Bytes],
    len: u64,
    id: ObjectId,
    plan: &Plan,
    compression: Compression,
    key: Option<&ObjectKey>,
) -> Result<(Shape, Bytes)> {
    let (n, size) = (frames(len, plan.frame_size), plan.frame_size as usize);
    let failed = |e: std::io::Error| Error::internal(format!("zstd: {e}"));
    let mut zstd = match compression {
        Compression::None => None,
        Compression::Zstd { level } => Some(zstd::bulk::Compressor::new(i32::from(level)).map_err(failed)?),
    };
    let what = Vouched { id, len, frame_size: plan.frame_size, zstd: plan.packing.zstd };
    let mut stream = BytesMut::with_capacity(len as usize + n * TAG);
    let (mut rope, mut whole, mut small) = (Rope::new(parts), Vec::new(), vec![0; size]);
    let (mut lengths, mut crcs) = (Vec::with_capacity(n), Vec::new());
    for frame in 0..n {
        let slices = rope.take(size);
        let held: usize = slices.iter().map(|s| s.len()).sum();
        let begin = stream.len();
        let mut packed = None;
        if let Some(zstd) = &mut zstd {
            let plain = match slices[..] {
                [one] => one,
                _ => {
                    whole.clear();
                    slices.iter().for_each(|s| whole.extend_from_slice(s));
                    &whole[..]
                }
            };
            // What finds no room here would not have shrunk: it is kept as it is.
            packed = zstd.compress_to_buffer(plain, &mut small[..held - 1]).ok().filter(|n| *n > 0);
        }
        match packed {
            Some(packed) => stream.extend_from_slice(&small[..packed]),
            None => slices.iter().for_each(|s| stream.extend_from_slice(s)),
        }
        lengths.push((stream.len() - begin) as u32);
        match key {
            Some(key) => {
                let tag = key.seal(frame as u32, &vouched(&what, frame), &mut stream[begin..])?;
                stream.extend_from_slice(&tag);
            }
            None => crcs.push(summed(id, frame, &[&stream[begin..]])),
        }
    }
    let shrunk = lengths.iter().map(|l| u64::from(*l)).sum::<u64>() < len;
    let shape = Shape::new(id, len, plan, shrunk.then_some(&lengths[..]), crcs)?;
    Ok((shape, stream.freeze()))
}

/// Cuts the stream into data fragments, and computes the parity.
fn fragments(shape: Shape, stream: Bytes) -> Result<Encoded> {
    let (k, m) = (shape.policy.data(), usize::from(shape.policy.m));
    let len = shape.fragment_len as usize;
    let mut fragments: Vec<Bytes> = (0..k)
        .map(|n| {
            let (from, to) = ((n * len).min(stream.len()), ((n + 1) * len).min(stream.len()));
            if to - from == len {
                return stream.slice(from..to);
            }
            let mut last = BytesMut::zeroed(len);
            last[..to - from].copy_from_slice(&stream[from..to]);
            last.freeze()
        })
        .collect();
    let mut parity: Vec<BytesMut> = (0..m).map(|_| BytesMut::zeroed(len)).collect();
    let inputs: Vec<&[u8]> = fragments.iter().map(|f| &f[..]).collect();
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
    Code::of(k, m)?.encoding().apply(&inputs, &mut outputs);
    fragments.extend(parity.into_iter().map(BytesMut::freeze));
    let crcs = fragments.iter().map(|f| crc32c(f)).collect();
    Ok(Encoded { shape, fragments, crcs })
}

/// The bytes `want` of an object, from the packed frames that hold them: `stream` is the range of `shape.stream_range(frames)`
/// in pieces. Every frame is verified.
///
/// # Errors
/// Which frame is not what was packed.
pub fn decode(
    shape: &Shape,
    key: Option<&ObjectKey>,
    frames: &Range<usize>,
    stream: &[Bytes],
    want: &Range<u64>,
) -> std::result::Result<Bytes, BadFrame> {
    let mut rope = Rope::new(stream);
    let plain = !shape.packing.zstd && shape.packing.key.is_none();
    let skip = (want.start - shape.frame_range(frames.start).start) as usize;
    let len = (want.end - want.start) as usize;
    if plain && let [one] = stream {
        for frame in frames.clone() {
            verify(shape, frame, &rope.take(packed_len(shape, frame)))?;
        }
        return Ok(one.slice(skip..skip + len));
    }
    let mut out = BytesMut::with_capacity(len);
    let (mut sealed, mut opened, mut zstd) = (Vec::new(), Vec::new(), None);
    for frame in frames.clone() {
        let slices = rope.take(packed_len(shape, frame));
        let held = shape.frame_range(frame);
        let held_len = (held.end - held.start) as usize;
        let part = (want.start.max(held.start) - held.start) as usize
            ..(want.end.min(held.end) - held.start) as usize;
        sealed.clear();
        let payload: &[u8] = match key {
            Some(key) => {
                slices.iter().for_each(|s| sealed.extend_from_slice(s));
                open(shape, key, frame, &mut sealed)?
            }
            None => {
                verify(shape, frame, &slices)?;
                match slices[..] {
                    [one] => one,
                    _ => {
                        slices.iter().for_each(|s| sealed.extend_from_slice(s));
                        &sealed
                    }
                }
            }
        };
        if payload.len() == held_len {
            out.extend_from_slice(&payload[part]);
            continue;
        }
        let bad = |why| BadFrame { frame, why };
        let zstd = match &mut zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(|_| bad("zstd does not start"))?),
        };
        opened.resize(held_len, 0);
        let n =
            zstd.decompress_to_buffer(payload, &mut opened[..]).map_err(|_| bad("zstd does not know it"))?;
        if n != held_len {
            return Err(bad("it holds fewer bytes than it should"));
        }
        out.extend_from_slice(&opened[part]);
    }
    Ok(out.freeze())
}

fn packed_len(shape: &Shape, frame: usize) -> usize {
    let range = shape.stream_range(&(frame..frame + 1));
    (range.end - range.start) as usize
}

fn verify(shape: &Shape, frame: usize, packed: &[&[u8]]) -> std::result::Result<(), BadFrame> {
    if common::mutant::is_on("alba-frame-crc-ignored")
        || shape.crc(frame) == Some(summed(shape.id, frame, packed))
    {
        return Ok(());
    }
    Err(BadFrame { frame, why: "its checksum does not match" })
}

fn open<'a>(
    shape: &Shape,
    key: &ObjectKey,
    frame: usize,
    sealed: &'a mut [u8],
) -> std::result::Result<&'a [u8], BadFrame> {
    let bad = BadFrame { frame, why: "its seal does not match" };
    let Some(payload) = sealed.len().checked_sub(TAG) else { return Err(bad) };
    let (payload, tag) = sealed.split_at_mut(payload);
    let mut seal = [0; TAG];
    seal.copy_from_slice(tag);
    let Shape { id, len, frame_size, .. } = *shape;
    let what = vouched(&Vouched { id, len, frame_size, zstd: shape.packing.zstd }, frame);
    if !key.open(frame as u32, &what, payload, seal) {
        return Err(bad);
    }
    Ok(payload)
}
