//! The reference model of a volume: a log of operations, and the image that a prefix of it makes.

use super::model::{PER_CLUSTER, SECTOR};

/// An operation of a small sequence; the number is a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Writes the cluster.
    Write(usize),
    /// Writes sectors 3 to 5 of the cluster.
    Unaligned(usize),
    /// Makes the cluster zero.
    Zero(usize),
    /// Gives the cluster back.
    Discard(usize),
    /// Flushes.
    Flush,
    /// Writes the cluster with FUA.
    Fua(usize),
    /// Waits until everything is on the backend.
    Upload,
    /// Grows the volume by a cluster.
    Resize,
    /// The process is killed and started again.
    Restart,
}

/// What a client knows.
#[derive(Debug, Default)]
pub struct Reference {
    /// Everything issued, in order.
    pub log: Vec<Op>,
    /// How many of them were acknowledged: the death of the process keeps them.
    pub acked: usize,
    /// How many were before the last flush, FUA or resize: a power cut keeps them.
    pub flushed: usize,
    /// How many were uploaded: the loss of the data directory keeps them.
    pub committed: usize,
}

impl Reference {
    /// The last operation was acknowledged.
    pub fn ack(&mut self) {
        self.acked = self.log.len();
        if matches!(self.log.last(), Some(Op::Flush | Op::Fua(_) | Op::Resize | Op::Upload)) {
            self.flushed = self.acked;
        }
        if self.log.last() == Some(&Op::Upload) {
            self.committed = self.acked;
        }
    }

    /// The image that the first `n` operations make, of a volume that had `clusters`.
    pub fn image(&self, clusters: usize, n: usize) -> Vec<u8> {
        let cluster = PER_CLUSTER * SECTOR;
        let mut image = vec![0; clusters * cluster];
        for (number, op) in self.log[..n].iter().enumerate() {
            let fill = number as u8 + 1;
            match *op {
                Op::Write(c) | Op::Fua(c) => image[c * cluster..(c + 1) * cluster].fill(fill),
                Op::Unaligned(c) => image[c * cluster + 3 * SECTOR..c * cluster + 6 * SECTOR].fill(fill),
                Op::Zero(c) | Op::Discard(c) => image[c * cluster..(c + 1) * cluster].fill(0),
                Op::Resize => image.resize(image.len() + cluster, 0),
                Op::Flush | Op::Restart | Op::Upload => {}
            }
        }
        image
    }

    /// Whether `found` is the image of a prefix of at least `least` operations.
    pub fn explains(&self, clusters: usize, least: usize, found: &[u8]) -> bool {
        (least..=self.log.len()).any(|n| self.image(clusters, n) == found)
    }
}
