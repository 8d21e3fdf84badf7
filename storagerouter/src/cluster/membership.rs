//! The note in the data directory that says which group this router belongs to, and how far it came.
//!
//! Without a note a router is the first member of its own group. A note is written before what it says is done, so that whoever starts
//! after a crash goes on where the last one was.

use crate::datadir::write_durably;
use common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file in the data directory.
const FILE: &str = "membership";
/// The version that this binary writes.
const VERSION: u32 = 1;
/// The id of the member that founds a group.
pub const FOUNDER: u64 = 1;

/// How far a router is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// It was told to join and has no id yet. The registry that it may have is to be put away.
    Asked,
    /// It joins under this id, which the group may know or not.
    Joining {
        /// Its id.
        member: u64,
    },
    /// It is one of them.
    Member {
        /// Its id.
        member: u64,
    },
    /// It was told to leave, which the group may have heard of or not.
    Leaving {
        /// Its id.
        member: u64,
    },
    /// It is none of them any more.
    Left {
        /// What its id was.
        member: u64,
    },
}

/// The note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    v: u32,
    /// The group, as 32 hexadecimal digits.
    group: String,
    /// Where other members were: needed until the registry here knows them.
    pub peers: Vec<String>,
    /// How far it came.
    pub at: Stage,
}

/// A group as people see it.
pub fn shown(group: u128) -> String {
    format!("{group:032x}")
}

impl Membership {
    /// That this router was told to join.
    pub fn asked(group: u128, peers: Vec<String>) -> Self {
        Self { v: VERSION, group: shown(group), peers, at: Stage::Asked }
    }

    /// The note in `data_dir`, or what it would be.
    pub fn here(data_dir: &Path, group: u128, member: u64) -> Result<Self> {
        let new =
            || Self { v: VERSION, group: shown(group), peers: Vec::new(), at: Stage::Member { member } };
        Ok(Self::read(data_dir)?.unwrap_or_else(new))
    }

    /// The note in `data_dir`, if there is one.
    pub fn read(data_dir: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let path = data_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), &e)),
        };
        let bad = |why: String| {
            Error::corrupt(format!(
                "{} can't be read ({why}): restore it, it is one line of JSON",
                path.display()
            ))
        };
        let version: Version = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        if version.v != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} has version {}, and this storage router knows {VERSION}: run the version that wrote it",
                    path.display(),
                    version.v
                ),
            ));
        }
        let note: Self = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        note.group()?;
        Ok(Some(note))
    }

    /// The group.
    pub fn group(&self) -> Result<u128> {
        let digits = self.group.len() == 32 && self.group.bytes().all(|b| b.is_ascii_hexdigit());
        let group = u128::from_str_radix(&self.group, 16).ok().filter(|group| digits && *group != 0);
        group
            .ok_or_else(|| Error::corrupt(format!("the note of the membership names group '{}'", self.group)))
    }

    /// Notes, durably, that it came so far.
    pub fn move_to(&mut self, stage: Stage, data_dir: &Path) -> Result<()> {
        self.at = stage;
        self.write(data_dir)
    }

    /// Writes it, durably.
    pub fn write(&self, data_dir: &Path) -> Result<()> {
        let text =
            serde_json::to_string(self).map_err(|e| Error::internal(format!("the membership: {e}")))?;
        write_durably(data_dir, FILE, &text)
    }

    /// Forgets it: the router is the first of its own group again.
    pub fn remove(data_dir: &Path) -> Result<()> {
        let path = data_dir.join(FILE);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", path.display()), &e))
            }
            _ => common::disk::local::sync_dir(data_dir),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Membership::read(dir.path()).unwrap(), None);
        let mut note = Membership::asked(7, vec!["a:1".into()]);
        note.write(dir.path()).unwrap();
        assert_eq!(Membership::read(dir.path()).unwrap(), Some(note.clone()));
        for stage in [Stage::Joining { member: 3 }, Stage::Member { member: 3 }, Stage::Leaving { member: 3 }]
        {
            note.move_to(stage, dir.path()).unwrap();
            let read = Membership::read(dir.path()).unwrap().unwrap();
            assert_eq!((read.at, read.group().unwrap()), (stage, 7));
        }
        Membership::remove(dir.path()).unwrap();
        Membership::remove(dir.path()).unwrap();
        assert_eq!(Membership::read(dir.path()).unwrap(), None);
    }

    #[test]
    fn one_that_can_not_be_right_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let good = serde_json::to_string(&Membership::asked(7, vec![])).unwrap();
        for (text, part) in [
            ("".to_string(), "can't be read"),
            ("{}".to_string(), "can't be read"),
            (good.replace("\"v\":1", "\"v\":2"), "version 2"),
            (good.replace("asked", "left"), "can't be read"),
            (good.replace("0000", "xxxx"), "names group"),
            (good.replace("}", ",\"x\":1}"), "can't be read"),
        ] {
            std::fs::write(dir.path().join(FILE), &text).unwrap();
            let message = Membership::read(dir.path()).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
