//! What the snapshots of a volume may show, and that they show the same for ever.

use super::model::SECTOR;
use std::collections::BTreeMap;

/// Whether somebody was told that the snapshot is there, or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It was asked for.
    Issued,
    /// It is there.
    Taken,
    /// It was asked to go.
    Leaving,
    /// It is gone.
    Gone,
}

/// One snapshot.
#[derive(Debug, Clone)]
struct Known {
    life: Life,
    /// Whether the backend was seen to have it.
    committed: bool,
    /// For each sector what it may show, from when it was acknowledged.
    may: Option<Vec<Vec<u64>>>,
    /// What it showed.
    shown: Option<Vec<u64>>,
}

/// The snapshots of one volume.
#[derive(Debug, Default)]
pub struct Snapshots {
    next: u128,
    known: BTreeMap<u128, Known>,
}

impl Snapshots {
    /// A snapshot is about to be issued: its identity.
    pub fn begin(&mut self) -> u128 {
        self.next += 1;
        self.known.insert(self.next, Known { life: Life::Issued, committed: false, may: None, shown: None });
        self.next
    }

    /// It was acknowledged, and each sector may show one of these words.
    pub fn ack(&mut self, id: u128, may: Vec<Vec<u64>>) {
        if let Some(s) = self.known.get_mut(&id) {
            s.life = Life::Taken;
            s.may = Some(may);
        }
    }

    /// Those that are there.
    pub fn taken(&self) -> Vec<u128> {
        self.known.iter().filter(|(_, s)| s.life == Life::Taken).map(|(id, _)| *id).collect()
    }

    /// One that is there, the `nth` when counted round and round; `None` when there is none.
    pub fn some(&self, nth: usize) -> Option<u128> {
        let taken = self.taken();
        taken.get(nth % taken.len().max(1)).copied()
    }

    /// A deletion is about to be issued.
    pub fn begin_delete(&mut self, id: u128) {
        self.set(id, Life::Leaving);
    }

    /// The deletion was acknowledged.
    pub fn ack_delete(&mut self, id: u128) {
        self.set(id, Life::Gone);
    }

    fn set(&mut self, id: u128, life: Life) {
        if let Some(s) = self.known.get_mut(&id) {
            s.life = life;
        }
    }

    /// Checks what a snapshot showed, and remembers it. Whoever read it saw it on the backend.
    pub fn check(&mut self, id: u128, image: &[u8]) -> Result<(), String> {
        let Some(s) = self.known.get_mut(&id) else { return Err(format!("snapshot {id} was never taken")) };
        s.committed = true;
        let words: Vec<u64> =
            image.chunks(SECTOR).map(|c| u64::from_le_bytes(c[..8].try_into().unwrap_or_default())).collect();
        if let Some(shown) = &s.shown {
            return match *shown == words {
                true => Ok(()),
                false => Err(format!("snapshot {id} shows something else than before")),
            };
        }
        for (sector, word) in words.iter().enumerate() {
            let none = Vec::new();
            let Some(may) = s.may.as_ref().map(|may| may.get(sector).unwrap_or(&none)) else { continue };
            // Behind the size that was acknowledged a growth under way may have made room.
            let right = may.contains(word) || may.is_empty() && *word == 0;
            if !right {
                return Err(format!("snapshot {id}, sector {sector} shows {word:#x}, may show {may:x?}"));
            }
        }
        s.shown = Some(words);
        Ok(())
    }

    /// Checks which snapshots a volume lists after a crash, which lost what was not on the backend if
    /// `only_committed`. What it lists is there from now on.
    pub fn settle(&mut self, listed: &[u128], only_committed: bool) -> Result<(), String> {
        for id in listed {
            match self.known.get(id).map(|s| s.life) {
                None => return Err(format!("snapshot {id} was never taken")),
                Some(Life::Gone) => return Err(format!("snapshot {id} was deleted, and is there")),
                Some(_) => {}
            }
        }
        for (id, s) in &mut self.known {
            let there = listed.contains(id);
            let promised = s.life == Life::Taken && (s.committed || !only_committed);
            if promised && !there {
                return Err(format!("snapshot {id} is gone"));
            }
            s.life = if there { Life::Taken } else { Life::Gone };
        }
        Ok(())
    }

    /// Everything that is there now is on the backend.
    pub fn committed(&mut self, ids: &[u128]) {
        for id in ids {
            if let Some(s) = self.known.get_mut(id) {
                s.committed = true;
            }
        }
    }
}
