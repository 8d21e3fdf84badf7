//! The shape of an object: all that must be known to find a byte of it in its fragments.
//!
//! An object is cut into frames, each is packed (compressed, sealed), and the packed frames one behind the other are the *stream*.
//! The stream is cut into k data fragments of one length, the last ones filled up with zeroes. So frame n of an object
//! lies at one place of the stream, and that in one fragment, or at a seam in two. A fragment is one value at its OSD, or several when
//! it is longer than an OSD takes.

use crate::alba::layout::ObjectId;
use crate::alba::preset::{MAX_FRAME, MAX_VALUE, MIN_FRAME, Policy, VALUE_UNIT};
use crate::alba::wire::{Reader, Writer};
use common::{Error, Result};
use std::ops::Range;

/// The most frames of an object: their index must fit a record.
pub const MAX_FRAMES: usize = 1 << 16;
/// The longest object.
pub const MAX_OBJECT: u64 = 1 << 30;
/// What sealing adds to a frame.
pub const TAG: usize = 16;
/// Long fragments begin at multiples of this in the stream, so that what is aligned in an object is so in its fragments.
const BLOCK: u64 = 4096;
/// Short ones at multiples of this.
const LINE: u64 = 64;

const ZSTD: u8 = 1;
const SEALED: u8 = 2;
const LENGTHS: u8 = 4;
const KNOWN: u8 = ZSTD | SEALED | LENGTHS;

/// How the frames of an object are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Frames may be compressed by zstd: those that are shorter than what they hold.
    pub zstd: bool,
    /// Frames are sealed with a key derived from the namespace's key of this number.
    pub key: Option<u32>,
}

/// All that must be known to find a byte of an object in its fragments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Drawn at random per put.
    pub id: ObjectId,
    /// Bytes of the object.
    pub len: u64,
    /// How it is protected.
    pub policy: Policy,
    /// Bytes of each frame but the last.
    pub frame_size: u32,
    /// How frames are packed.
    pub packing: Packing,
    /// Bytes of each fragment.
    pub fragment_len: u64,
    /// Bytes of each value of a fragment but the last.
    pub value_len: u32,
    /// Where each frame begins in the stream, and where the last one ends. Empty when none is compressed: then it is told
    /// by the number.
    offsets: Vec<u32>,
    /// CRC32C of (object id, frame number, packed frame) of each, unless they are sealed: then the seal says it.
    crcs: Vec<u32>,
}

/// How an object is to be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How it is protected.
    pub policy: Policy,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Bytes of a value at an OSD.
    pub value_len: u32,
    /// How frames are packed.
    pub packing: Packing,
}

/// A piece of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Which data fragment.
    pub fragment: usize,
    /// Which bytes of it.
    pub range: Range<u64>,
}

/// The frames of `len` bytes.
pub(super) fn frames(len: u64, frame_size: u32) -> usize {
    len.div_ceil(u64::from(frame_size)) as usize
}

/// The length of a fragment when a stream of `stream` bytes is cut into `k`.
fn fragment_length(stream: u64, k: u64) -> u64 {
    // A block of padding may be an eighth of a fragment, not more.
    let unit = if stream >= 8 * BLOCK * k { BLOCK } else { LINE };
    stream.div_ceil(k).next_multiple_of(unit)
}

impl Shape {
    /// The shape of an object whose frames were packed to `lengths` (of payload, without seals).
    pub(super) fn new(
        id: ObjectId,
        len: u64,
        plan: &Plan,
        lengths: Option<&[u32]>,
        crcs: Vec<u32>,
    ) -> Result<Self> {
        let Plan { policy, frame_size, value_len, packing } = *plan;
        let (fragment_len, offsets) = (0, Vec::new());
        let mut shape = Self { id, len, policy, frame_size, packing, fragment_len, value_len, offsets, crcs };
        if let Some(lengths) = lengths {
            shape.offsets = shape.offsets_of(lengths);
        }
        shape.fragment_len = fragment_length(shape.stream_len(), u64::from(policy.k));
        shape.check().map_err(Error::internal)?;
        Ok(shape)
    }

    fn offsets_of(&self, lengths: &[u32]) -> Vec<u32> {
        let tag = if self.packing.key.is_some() { TAG as u32 } else { 0 };
        let mut at = 0u32;
        std::iter::once(0)
            .chain(lengths.iter().map(|len| {
                at = at.saturating_add(len + tag);
                at
            }))
            .collect()
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        frames(self.len, self.frame_size)
    }

    fn tag(&self) -> u64 {
        if self.packing.key.is_some() { TAG as u64 } else { 0 }
    }

    /// Bytes of all packed frames.
    pub fn stream_len(&self) -> u64 {
        match self.offsets.last() {
            Some(end) => u64::from(*end),
            None => self.len + self.frames() as u64 * self.tag(),
        }
    }

    /// The frames that hold `range` of the object.
    pub fn frames_of(&self, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let size = u64::from(self.frame_size);
        (range.start / size) as usize..frames(range.end, self.frame_size)
    }

    /// Which bytes of the object a frame holds.
    pub fn frame_range(&self, frame: usize) -> Range<u64> {
        let from = frame as u64 * u64::from(self.frame_size);
        from..self.len.min(from + u64::from(self.frame_size))
    }

    fn offset(&self, frame: usize) -> u64 {
        match self.offsets.get(frame) {
            Some(at) => u64::from(*at),
            None => self.len.min(frame as u64 * u64::from(self.frame_size)) + frame as u64 * self.tag(),
        }
    }

    /// Where packed frames lie in the stream.
    pub fn stream_range(&self, frames: &Range<usize>) -> Range<u64> {
        self.offset(frames.start)..self.offset(frames.end)
    }

    /// The checksum of a packed frame, when it is not sealed.
    pub(super) fn crc(&self, frame: usize) -> Option<u32> {
        self.crcs.get(frame).copied()
    }

    /// The pieces of data fragments that hold a range of the stream, in order.
    pub fn extents(&self, stream: &Range<u64>) -> Vec<Extent> {
        let (mut at, mut extents) = (stream.start, Vec::new());
        while at < stream.end {
            let fragment = at / self.fragment_len;
            let end = stream.end.min((fragment + 1) * self.fragment_len);
            let begin = fragment * self.fragment_len;
            extents.push(Extent { fragment: fragment as usize, range: at - begin..end - begin });
            at = end;
        }
        extents
    }

    /// Number of values that a fragment is: at least one, so that an empty object has fragments too.
    pub fn values(&self) -> usize {
        self.fragment_len.div_ceil(u64::from(self.value_len)).max(1) as usize
    }

    /// Which bytes of a fragment are in its value of that number.
    pub fn value_range(&self, value: usize) -> Range<u64> {
        let from = value as u64 * u64::from(self.value_len);
        from..self.fragment_len.min(from + u64::from(self.value_len))
    }

    /// The values that hold a range of a fragment, and which bytes of each.
    pub fn values_of(&self, range: &Range<u64>) -> Vec<(usize, Range<u64>)> {
        let (mut at, mut values) = (range.start, Vec::new());
        while at < range.end {
            let value = (at / u64::from(self.value_len)) as usize;
            let held = self.value_range(value);
            let end = range.end.min(held.end);
            values.push((value, at - held.start..end - held.start));
            at = end;
        }
        values
    }

    /// What does not add up. What this accepts, everything here may rely on.
    fn check(&self) -> std::result::Result<(), String> {
        let size = self.frame_size;
        if !size.is_power_of_two() || !(MIN_FRAME..=MAX_FRAME).contains(&size) {
            return Err(format!(
                "its frames of {size} bytes are no power of two from {MIN_FRAME} to {MAX_FRAME}"
            ));
        }
        let frames = self.frames();
        if self.len > MAX_OBJECT || frames > MAX_FRAMES {
            return Err(format!(
                "its {} bytes in {frames} frames are more than {MAX_OBJECT} in {MAX_FRAMES}",
                self.len
            ));
        }
        if !self.offsets.is_empty() {
            if !self.packing.zstd || self.offsets.len() != frames + 1 {
                return Err(format!("{} offsets for {frames} frames", self.offsets.len()));
            }
            for (n, ends) in self.offsets.windows(2).enumerate() {
                let held = self.frame_range(n);
                let packed = u64::from(ends[1]).saturating_sub(u64::from(ends[0]));
                if packed <= self.tag() || packed > held.end - held.start + self.tag() {
                    return Err(format!(
                        "frame {n} is packed to {packed} bytes of {}",
                        held.end - held.start
                    ));
                }
            }
        }
        let crcs = if self.packing.key.is_some() { 0 } else { frames };
        if self.crcs.len() != crcs {
            return Err(format!("{} checksums for {frames} frames", self.crcs.len()));
        }
        let (whole, k) = (self.stream_len(), u64::from(self.policy.k));
        if !(VALUE_UNIT..=MAX_VALUE).contains(&self.value_len) || !self.value_len.is_multiple_of(VALUE_UNIT) {
            return Err(format!("values of {} bytes", self.value_len));
        }
        if self.fragment_len > 2 * MAX_OBJECT
            || self.fragment_len * k < whole
            || (self.fragment_len == 0) != (whole == 0)
        {
            return Err(format!("{k} fragments of {} bytes can't be {whole} bytes", self.fragment_len));
        }
        Ok(())
    }

    /// Appends the shape.
    pub(crate) fn write(&self, w: &mut Writer) {
        let flags = if self.packing.zstd { ZSTD } else { 0 }
            | if self.packing.key.is_some() { SEALED } else { 0 }
            | if self.offsets.is_empty() { 0 } else { LENGTHS };
        let Policy { k, m, c, x } = self.policy;
        w.u128(self.id.0).u64(self.len).u8(k).u8(m).u8(c).u8(x.unwrap_or(0));
        w.u8(self.frame_size.trailing_zeros() as u8).u8(flags).u16(0);
        w.u32(self.packing.key.unwrap_or(0)).u32(self.value_len).u64(self.fragment_len);
        // One less than the length, so that a full frame of 64 KiB takes two bytes.
        let tag = self.tag() as u32;
        for ends in self.offsets.windows(2) {
            let length = ends[1] - ends[0] - tag - 1;
            match self.frame_size <= 1 << 16 {
                true => w.u16(length as u16),
                false => w.u24(length),
            };
        }
        for crc in &self.crcs {
            w.u32(*crc);
        }
    }

    /// Reads a shape, and checks all of it.
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self> {
        let id = ObjectId(r.u128()?);
        let len = r.u64()?;
        let (k, m, c, x) = (r.u8()?, r.u8()?, r.u8()?, r.u8()?);
        let policy = Policy::new(k, m, c, (x != 0).then_some(x)).map_err(|e| r.corrupt(e))?;
        let (log2, flags, reserved) = (r.u8()?, r.u8()?, r.u16()?);
        let (key, value_len, fragment_len) = (r.u32()?, r.u32()?, r.u64()?);
        if flags & !KNOWN != 0 {
            return Err(Error::new(
                common::ErrorKind::Unsupported,
                format!("object {id}: a newer release wrote it (features {flags:#04x}): upgrade this router"),
            ));
        }
        let packing = Packing { zstd: flags & ZSTD != 0, key: (flags & SEALED != 0).then_some(key) };
        let frame_size = 1u32.checked_shl(u32::from(log2)).unwrap_or(0);
        if reserved != 0 || (packing.key.is_none() && key != 0) || frame_size == 0 {
            return Err(r.corrupt("reserved bytes of the shape are not zero, or its frame size is none"));
        }
        // Bounded before it sizes anything.
        let n = frames(len.min(MAX_OBJECT + 1), frame_size);
        if n > MAX_FRAMES {
            return Err(r.corrupt(format!("{n} frames, more than the limit of {MAX_FRAMES}")));
        }
        let (offsets, crcs) = (Vec::new(), Vec::new());
        let mut shape = Self { id, len, policy, frame_size, packing, fragment_len, value_len, offsets, crcs };
        if flags & LENGTHS != 0 {
            let width = if frame_size <= 1 << 16 { 2 } else { 3 };
            if n == 0 || n * width > r.left() {
                return Err(r.corrupt(format!("cut off: lengths of {n} frames in {} bytes", r.left())));
            }
            let lengths: Result<Vec<u32>> =
                (0..n).map(|_| Ok(if width == 2 { u32::from(r.u16()?) } else { r.u24()? } + 1)).collect();
            shape.offsets = shape.offsets_of(&lengths?);
        }
        if packing.key.is_none() {
            if n * 4 > r.left() {
                return Err(r.corrupt(format!("cut off: checksums of {n} frames in {} bytes", r.left())));
            }
            shape.crcs = (0..n).map(|_| r.u32()).collect::<Result<_>>()?;
        }
        shape.check().map_err(|what| r.corrupt(what))?;
        Ok(shape)
    }
}
