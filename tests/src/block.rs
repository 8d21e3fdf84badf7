//! The self-describing block: 4 KiB that say what they are, so that a lost, stale, torn or
//! misplaced one is told from the right one without remembering its bytes.
//!
//! Layout, little endian: magic u64, volume u64, address u64 (in blocks), writer u64, sequence u64,
//! previous sequence u64, a body drawn from (address, sequence), CRC32C of all before it.

use common::crc::crc32c;
use std::fmt;

/// Bytes in a block.
pub const BLOCK: usize = 4096;

const MAGIC: u64 = 0x6b63_6f6c_4266_6c65;
const BODY: usize = 48;
const TAIL: usize = BLOCK - 4;

/// What a written block says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which volume it was written to.
    pub volume: u64,
    /// At which block address.
    pub address: u64,
    /// By which connection.
    pub writer: u64,
    /// Unique number of the write, rising; never 0.
    pub sequence: u64,
    /// Sequence of an earlier write to this address, 0 for none.
    pub previous: u64,
}

/// What a block read from a volume turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All zero.
    Zero,
    /// A whole block with a good checksum.
    Written(Stamp),
    /// Neither: torn, flipped or foreign bytes.
    Broken,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Zero => write!(f, "zeroes"),
            Found::Written(s) => write!(
                f,
                "write {} (after {}) of writer {} to block {} of volume {:x}",
                s.sequence, s.previous, s.writer, s.address, s.volume
            ),
            Found::Broken => write!(f, "bytes that are no block"),
        }
    }
}

impl Stamp {
    /// Fills `out`, which is one block long.
    pub fn encode(&self, out: &mut [u8]) {
        let words = [MAGIC, self.volume, self.address, self.writer, self.sequence, self.previous];
        for (place, word) in out.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let mut state = (self.sequence << 32) ^ self.address ^ 0x9e37_79b9_7f4a_7c15;
        for place in out[BODY..TAIL].chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            place.copy_from_slice(&state.to_le_bytes()[..place.len()]);
        }
        let crc = crc32c(&out[..TAIL]);
        out[TAIL..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Says what a block of bytes is.
pub fn decode(block: &[u8]) -> Found {
    if block.len() != BLOCK {
        return Found::Broken;
    }
    if block.iter().all(|byte| *byte == 0) {
        return Found::Zero;
    }
    let word = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    let stored = u32::from_le_bytes([block[TAIL], block[TAIL + 1], block[TAIL + 2], block[TAIL + 3]]);
    if word(0) != MAGIC || crc32c(&block[..TAIL]) != stored {
        return Found::Broken;
    }
    Found::Written(Stamp {
        volume: word(1),
        address: word(2),
        writer: word(3),
        sequence: word(4),
        previous: word(5),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_what_it_is_and_notices_any_change() {
        let stamp = Stamp { volume: 7, address: 9, writer: 2, sequence: 33, previous: 12 };
        let mut block = vec![0; BLOCK];
        stamp.encode(&mut block);
        assert_eq!(decode(&block), Found::Written(stamp));
        for at in [0, 17, 47, 48, 2000, BLOCK - 1] {
            let mut flipped = block.clone();
            flipped[at] ^= 1;
            assert_eq!(decode(&flipped), Found::Broken, "a flip at {at} went unnoticed");
        }
        // Torn between two writes at a sector.
        let mut other = vec![0; BLOCK];
        Stamp { sequence: 34, previous: 33, ..stamp }.encode(&mut other);
        other[512..].copy_from_slice(&block[512..]);
        assert_eq!(decode(&other), Found::Broken);
        assert_eq!(decode(&[0; BLOCK]), Found::Zero);
    }
}
