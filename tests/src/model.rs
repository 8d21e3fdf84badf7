//! The oracle: for each block the writes that were issued and acknowledged, and from that what a
//! read or a crash may show.
//!
//! Time is a counter that rises with each event. A version is certainly gone once another one to
//! the same block was issued after it had been acknowledged, and was itself acknowledged. What
//! remains are the versions that may be seen. A request that got no answer stays possible.

use crate::block::{BLOCK, Found, Stamp, decode};
use std::fmt;

/// What a version of a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Reads as zeroes: never written, trimmed, or zeroes written.
    Zero,
    /// The write with this sequence.
    Write(u64),
}

#[derive(Debug, Clone, Copy)]
struct Version {
    content: Content,
    issued: u64,
    acked: Option<u64>,
}

/// A request that changes blocks and was not answered yet.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    first: usize,
    count: usize,
    issued: u64,
}

/// Up to where everything acknowledged must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// All that was acknowledged: what a killed process must give back.
    Everything,
    /// A prefix of the log that holds all that was acknowledged before this moment
    /// (see [`Model::now`]): what the backend alone must give back.
    PrefixWith(u64),
}

/// What is wrong with an image.
#[derive(Debug)]
pub struct Fault {
    /// First block that is wrong.
    pub block: usize,
    /// What is wrong, for people.
    pub what: String,
}

/// All that is wrong with an image; shows the first few.
#[derive(Debug)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks are wrong", self.0.len())?;
        for fault in self.0.iter().take(8) {
            write!(f, "; block {}: {}", fault.block, fault.what)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// What may be on one volume.
pub struct Model {
    volume: u64,
    clock: u64,
    blocks: Vec<Vec<Version>>,
}

impl Model {
    /// A volume of zeroes.
    pub fn new(volume: u64, blocks: usize) -> Self {
        let zero = Version { content: Content::Zero, issued: 0, acked: Some(0) };
        Self { volume, clock: 0, blocks: vec![vec![zero]; blocks] }
    }

    /// Blocks in the volume.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the volume has no blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// This moment, later than every event until now.
    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write is about to be sent: its bytes.
    pub fn begin_write(&mut self, first: usize, count: usize, writer: u64) -> (Ticket, Vec<u8>) {
        let issued = self.now();
        let mut data = vec![0; count * BLOCK];
        for (index, place) in data.chunks_exact_mut(BLOCK).enumerate() {
            let versions = &mut self.blocks[first + index];
            let previous = match versions.last().map(|version| version.content) {
                Some(Content::Write(sequence)) => sequence,
                _ => 0,
            };
            let address = (first + index) as u64;
            Stamp { volume: self.volume, address, writer, sequence: issued, previous }.encode(place);
            versions.push(Version { content: Content::Write(issued), issued, acked: None });
        }
        (Ticket { first, count, issued }, data)
    }

    /// A trim or a write of zeroes is about to be sent.
    pub fn begin_zero(&mut self, first: usize, count: usize) -> Ticket {
        let issued = self.now();
        for versions in &mut self.blocks[first..first + count] {
            versions.push(Version { content: Content::Zero, issued, acked: None });
        }
        Ticket { first, count, issued }
    }

    /// The request was answered with success.
    pub fn ack(&mut self, ticket: Ticket) {
        let now = self.now();
        for versions in &mut self.blocks[ticket.first..ticket.first + ticket.count] {
            for version in versions.iter_mut().rev() {
                if version.issued == ticket.issued {
                    version.acked = Some(now);
                    break;
                }
            }
        }
    }

    /// Checks what a read that was sent at `issued` returned.
    pub fn check_read(&self, first: usize, issued: u64, data: &[u8]) -> Result<(), Faults> {
        self.check(first, data, issued).map(|_| ())
    }

    /// Checks the whole image after a crash, and takes what was seen as the truth from now on:
    /// it may not change any more.
    pub fn settle(&mut self, image: &[u8], promise: Promise) -> Result<(), Faults> {
        let mut cutoff = match promise {
            Promise::Everything => u64::MAX,
            Promise::PrefixWith(moment) => moment,
        };
        let seen = self.check(0, image, cutoff)?;
        // No hole: what was acknowledged before the newest write that is there was issued, is there.
        let newest = seen.iter().map(|content| match content {
            Content::Write(sequence) => *sequence,
            Content::Zero => 0,
        });
        cutoff = cutoff.max(newest.max().unwrap_or(0));
        self.check(0, image, cutoff)?;
        let now = self.now();
        for (versions, content) in self.blocks.iter_mut().zip(seen) {
            *versions = vec![Version { content, issued: now, acked: Some(now) }];
        }
        Ok(())
    }

    /// How many acknowledged versions the image of [`Promise::PrefixWith`] may lack.
    pub fn acknowledged_after(&self, moment: u64) -> usize {
        self.blocks.iter().flatten().filter(|v| v.acked.is_some_and(|acked| acked >= moment)).count()
    }

    fn check(&self, first: usize, data: &[u8], cutoff: u64) -> Result<Vec<Content>, Faults> {
        let mut seen = Vec::with_capacity(data.len() / BLOCK);
        let mut faults = Vec::new();
        for (index, bytes) in data.chunks(BLOCK).enumerate() {
            let block = first + index;
            let found = decode(bytes);
            match self.judge(block, found, cutoff) {
                Ok(content) => seen.push(content),
                Err(what) => faults.push(Fault { block, what }),
            }
        }
        if faults.is_empty() { Ok(seen) } else { Err(Faults(faults)) }
    }

    fn judge(&self, block: usize, found: Found, cutoff: u64) -> Result<Content, String> {
        let Some(versions) = self.blocks.get(block) else {
            return Err(format!("lies beyond the volume, holds {found}"));
        };
        let content = match found {
            Found::Zero => Content::Zero,
            Found::Written(stamp) if stamp.volume != self.volume => {
                return Err(format!("another volume's data: {found}"));
            }
            Found::Written(stamp) if stamp.address != block as u64 => {
                return Err(format!("another address's data: {found}"));
            }
            Found::Written(stamp) => Content::Write(stamp.sequence),
            Found::Broken => return Err("torn or foreign bytes".into()),
        };
        // The latest issue among what was acknowledged in time: older versions acknowledged before it are gone.
        let barrier =
            versions.iter().filter(|v| v.acked.is_some_and(|acked| acked < cutoff)).map(|v| v.issued);
        let barrier = barrier.max().unwrap_or(0);
        let alive = |v: &&Version| v.acked.is_none_or(|acked| acked >= barrier);
        if versions.iter().filter(alive).any(|v| v.content == content) {
            return Ok(content);
        }
        let known = versions.iter().any(|v| v.content == content);
        let may: Vec<_> = versions.iter().filter(alive).map(|v| v.content).collect();
        let verdict = if known { "lost a later acknowledged change" } else { "never held this, or long ago" };
        Err(format!("{verdict}: holds {found}, may hold {may:?}"))
    }
}

#[cfg(test)]
#[path = "model/tests.rs"]
mod tests;
