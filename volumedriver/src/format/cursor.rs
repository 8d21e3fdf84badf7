//! Bounded little-endian reading and writing: the only way that our formats touch bytes.

use common::{Error, Result};
use std::fmt::Display;

/// Reads from the front of a slice; whatever is missing is `Corrupt`, never a panic.
pub(crate) struct Reader<'a> {
    who: &'a dyn Display,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; `who` is named in errors.
    pub(crate) fn new(who: &'a dyn Display, bytes: &'a [u8]) -> Self {
        Self { who, bytes, at: 0 }
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(Error::corrupt(format!(
                "{}: cut off: {n} bytes are needed at offset {}, {} are there",
                self.who,
                self.at,
                self.left()
            )));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// `n` reserved bytes: this version writes zeroes there, so anything else is not ours.
    pub(crate) fn zeroes(&mut self, n: usize) -> Result<()> {
        let at = self.at;
        match self.take(n)?.iter().position(|b| *b != 0) {
            None => Ok(()),
            Some(i) => {
                Err(Error::corrupt(format!("{}: reserved byte at offset {} is not zero", self.who, at + i)))
            }
        }
    }

    /// A `u32` count of records of `size` bytes, refused when the rest of the input could not hold
    /// so many: only then may it size an allocation.
    pub(crate) fn count(&mut self, what: &str, size: usize, max: usize) -> Result<usize> {
        let n = self.u32()? as usize;
        if n > max {
            return Err(Error::corrupt(format!("{}: {n} {what}, more than the limit of {max}", self.who)));
        }
        if n.saturating_mul(size) > self.left() {
            return Err(Error::corrupt(format!(
                "{}: cut off: {n} {what} of {size} bytes do not fit the {} bytes that are left",
                self.who,
                self.left()
            )));
        }
        Ok(n)
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<()> {
        match self.left() {
            0 => Ok(()),
            n => Err(Error::corrupt(format!("{}: {n} bytes too many at offset {}", self.who, self.at))),
        }
    }
}

/// Appends to a buffer.
#[derive(Default)]
pub(crate) struct Writer {
    /// What was written.
    pub(crate) buf: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(n: usize) -> Self {
        Self { buf: Vec::with_capacity(n) }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, n: u8) -> &mut Self {
        self.bytes(&[n])
    }

    pub(crate) fn u16(&mut self, n: u16) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, n: u32) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, n: u64) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn u128(&mut self, n: u128) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn zeroes(&mut self, n: usize) -> &mut Self {
        self.buf.resize(self.buf.len() + n, 0);
        self
    }
}

/// A checksum that does not match, in the words of every format.
pub(crate) fn crc_error(who: &dyn Display, what: &str, is: u32, should: u32) -> Error {
    Error::corrupt(format!("{who}: {what} checksum is {is:08x}, should be {should:08x}"))
}

/// An encoder was asked for what its decoder would refuse: a fault of ours, found in time.
pub(crate) fn refuse(error: Error) -> Error {
    Error::internal(format!("will not write {}", error.message()))
}
