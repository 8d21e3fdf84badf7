//! The reference model of a volume: a log of operations, and what a prefix of it makes.

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
    /// Takes a snapshot.
    Snapshot,
    /// Clones the newest snapshot, writes a part of the clone's cluster 0 and discards its cluster 1.
    Clone,
    /// Rolls back to the oldest snapshot.
    Rollback,
    /// Deletes the newest snapshot that has no clone.
    DeleteSnapshot,
    /// Rewrites every SCO with garbage.
    Scrub,
    /// Merges TLogs.
    Merge,
}

/// What the first operations make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The volume.
    pub image: Vec<u8>,
    /// The snapshots that there are: the number of the operation that took each, and what it shows.
    pub snapshots: Vec<(usize, Vec<u8>)>,
}

/// What a client knows.
#[derive(Debug, Default)]
pub struct Reference {
    /// Everything issued, in order.
    pub log: Vec<Op>,
    /// How many of them were acknowledged: the death of the process keeps them.
    pub acked: usize,
    /// How many were before the last flush, FUA, snapshot or resize: a power cut keeps them.
    pub flushed: usize,
    /// How many were uploaded: the loss of the data directory keeps them.
    pub committed: usize,
    /// Snapshots that were asked to go: by which operation, which, and whether it was acknowledged.
    pub deleted: Vec<(usize, usize, bool)>,
    /// Clones that were acknowledged: by which operation, and of which snapshot.
    pub clones: Vec<(usize, usize)>,
}

const BYTES: usize = PER_CLUSTER * SECTOR;

impl Reference {
    /// The last operation was acknowledged.
    pub fn ack(&mut self) {
        self.acked = self.log.len();
        let last = self.log.last();
        let uploads = matches!(last, Some(Op::Upload | Op::Clone | Op::Rollback | Op::Scrub | Op::Merge));
        if uploads || matches!(last, Some(Op::Flush | Op::Fua(_) | Op::Resize | Op::Snapshot)) {
            self.flushed = self.acked;
        }
        if uploads {
            self.committed = self.acked;
        }
    }

    /// What the first `n` operations make of a volume that had `clusters`.
    pub fn state(&self, clusters: usize, n: usize) -> State {
        let mut image = vec![0; clusters * BYTES];
        let mut snapshots: Vec<(usize, Vec<u8>)> = Vec::new();
        for (number, op) in self.log[..n].iter().enumerate() {
            let fill = number as u8 + 1;
            match *op {
                Op::Write(c) | Op::Fua(c) => image[c * BYTES..(c + 1) * BYTES].fill(fill),
                Op::Unaligned(c) => image[c * BYTES + 3 * SECTOR..c * BYTES + 6 * SECTOR].fill(fill),
                Op::Zero(c) | Op::Discard(c) => image[c * BYTES..(c + 1) * BYTES].fill(0),
                Op::Resize => image.resize(image.len() + BYTES, 0),
                Op::Snapshot => snapshots.push((number, image.clone())),
                Op::Rollback => {
                    if let Some((_, then)) = snapshots.first() {
                        let size = image.len();
                        image.clone_from(then);
                        image.resize(size, 0);
                    }
                }
                Op::DeleteSnapshot => {
                    let gone = self.deleted.iter().find(|(by, ..)| *by == number).map(|d| d.1);
                    snapshots.retain(|(taken, _)| Some(*taken) != gone);
                }
                Op::Flush | Op::Restart | Op::Upload | Op::Clone | Op::Scrub | Op::Merge => {}
            }
        }
        State { image, snapshots }
    }

    /// What a clone shows, given what its snapshot shows.
    pub fn clone_of(&self, snapshot: &[u8], by: usize) -> Vec<u8> {
        let mut image = snapshot.to_vec();
        image[3 * SECTOR..6 * SECTOR].fill(by as u8 + 101);
        image[BYTES..2 * BYTES].fill(0);
        image
    }

    /// Whether `found` is what a prefix of at least `least` operations makes. A snapshot goes when a
    /// Manifest no longer lists it, whatever becomes of the writes before.
    pub fn explains(&self, clusters: usize, least: usize, found: &State) -> bool {
        (least..=self.log.len()).any(|n| {
            let state = self.state(clusters, n);
            let gone =
                |number: usize, acked: bool| self.deleted.iter().any(|d| d.1 == number && d.2 >= acked);
            let may = |s: &(usize, Vec<u8>)| state.snapshots.contains(s) && !gone(s.0, true);
            let must = |s: &&(usize, Vec<u8>)| !gone(s.0, false);
            state.image == found.image
                && found.snapshots.iter().all(may)
                && state.snapshots.iter().filter(must).all(|s| found.snapshots.contains(s))
        })
    }
}
