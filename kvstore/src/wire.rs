//! Bounded little-endian encoding, shared by commands, log records and frames.

use bytes::Bytes;
use common::{Error, Result};

/// Appends fields to a buffer.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }

    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    pub fn u128(&mut self, v: u128) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    /// A length and the bytes; what is written was bounded before.
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u32(v.len() as u32);
        self.0.extend_from_slice(v);
        self
    }

    pub fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend_from_slice(v);
        self
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn finish(self) -> Bytes {
        self.0.into()
    }

    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields from a buffer; what is too short or too long is an error that names `what`.
pub(crate) struct Reader {
    rest: Bytes,
    what: &'static str,
}

impl Reader {
    pub fn new(bytes: Bytes, what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub fn bad(&self, why: &str) -> Error {
        Error::corrupt(format!("{}: {why}", self.what))
    }

    pub fn take(&mut self, n: usize) -> Result<Bytes> {
        if n > self.rest.len() {
            return Err(self.bad("it ends too early"));
        }
        Ok(self.rest.split_to(n))
    }

    pub fn take_rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let part = self.take(N)?;
        part[..].try_into().map_err(|_| self.bad("it ends too early"))
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad("a flag is neither 0 nor 1")),
        }
    }

    /// Bytes with their length, at most `max`.
    pub fn bytes(&mut self, max: usize) -> Result<Bytes> {
        let n = self.u32()? as usize;
        if n > max {
            return Err(self.bad("a length is beyond its limit"));
        }
        self.take(n)
    }

    /// Text with its length, at most `max` bytes.
    pub fn string(&mut self, max: usize) -> Result<String> {
        let bytes = self.bytes(max)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.bad("a text is not UTF-8"))
    }

    /// A count of things of at least `least` bytes each, at most `max`.
    pub fn count(&mut self, max: usize, least: usize) -> Result<usize> {
        let n = self.u32()? as usize;
        if n > max || n.saturating_mul(least) > self.rest.len() {
            return Err(self.bad("a count is beyond its limit"));
        }
        Ok(n)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.bad("there is more than it should have")) }
    }
}
