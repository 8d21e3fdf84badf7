//! Bounded little-endian reading and writing: the only way that ALBA's formats touch bytes.

use common::{Error, Result};

/// Reads from the front of a slice; whatever is missing is `Corrupt`, never a panic.
pub(crate) struct Reader<'a> {
    who: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; `who` is named in errors.
    pub(crate) fn new(who: &'a str, bytes: &'a [u8]) -> Self {
        Self { who, bytes, at: 0 }
    }

    /// An error about what is read.
    pub(crate) fn corrupt(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("{}: {what}", self.who))
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.corrupt(format!(
                "cut off: {n} bytes are needed at {}, {} are there",
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

    pub(crate) fn u24(&mut self) -> Result<u32> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
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

    /// A text with a `u16` length in front.
    pub(crate) fn text(&mut self, max: usize) -> Result<String> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(self.corrupt(format!("a text of {len} bytes, more than the limit of {max}")));
        }
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.corrupt("a text is not UTF-8"))
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<()> {
        match self.left() {
            0 => Ok(()),
            n => Err(self.corrupt(format!("{n} bytes too many at {}", self.at))),
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

    pub(crate) fn u24(&mut self, n: u32) -> &mut Self {
        self.bytes(&n.to_le_bytes()[..3])
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

    /// A text with a `u16` length in front; longer ones are the caller's to refuse.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
        self.u16(bytes.len() as u16).bytes(bytes)
    }
}
