//! The words of the registry: how a volume is replicated, and which logs hold what.

use common::{Epoch, Lsn, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many failures the acknowledged tail of a volume survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// The tail is in this router's journal alone.
    #[default]
    None,
    /// What was flushed is at the peers too.
    Async,
    /// Every acknowledged write is at the peers too.
    Sync,
}

/// Whether the peers of a [`Config`] have what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// They have, and acknowledgements wait for them.
    InSync,
    /// They are being sent what they miss; acknowledgements don't wait.
    CatchingUp,
    /// Nobody has, for sure; acknowledgements don't wait.
    #[default]
    Degraded,
}

/// Of how many peers an acknowledgement needs the confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needed {
    /// Of each that is named.
    #[default]
    All,
    /// Of any one.
    One,
}

impl Needed {
    /// The number, of `peers`; at least 1 where there is a peer.
    pub fn of(self, peers: usize) -> usize {
        match self {
            Needed::All => peers,
            Needed::One => peers.min(1),
        }
    }
}

/// What the owner does when no peer is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Says so in the registry and goes on alone.
    #[default]
    Degrade,
    /// Lets clients wait for the peers or for new ones.
    Block,
}

/// The identity of a log, drawn by the service that made it. After a loss there is another one, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Incarnation {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        let digits = s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit());
        let value = digits.then(|| u128::from_str_radix(&s, 16).ok()).flatten();
        value
            .map(Incarnation)
            .ok_or_else(|| serde::de::Error::custom("an incarnation is 32 hexadecimal digits"))
    }
}

/// A log at a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerLog {
    /// The storage router that keeps it.
    pub node: Name,
    /// Which log there; another one at the same node is another peer.
    pub incarnation: Incarnation,
}

/// How a volume is replicated in its current epoch: what the registry says, and what is proposed to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Config {
    /// What is promised.
    pub mode: Mode,
    /// How many peers it should have: 0 to 2.
    pub wanted: u8,
    /// How many of them each acknowledgement needs.
    pub needed: Needed,
    /// What to do when none is left.
    pub on_failure: OnFailure,
    /// Whether `peers` have what was acknowledged.
    pub status: Status,
    /// The logs of this epoch.
    pub peers: Vec<PeerLog>,
    /// Raised by one with each change; a change asserts the number that it was made from.
    pub config: u64,
    /// What the peers had confirmed when the status became Degraded: everything above it is at risk.
    pub replicated: Lsn,
}

impl Config {
    /// The configuration with which an epoch begins: alone, and it says so (rule 7).
    pub fn alone(mode: Mode, wanted: u8, needed: Needed, on_failure: OnFailure) -> Self {
        Config { mode, wanted: wanted.min(2), needed, on_failure, ..Config::default() }
    }

    /// Of how many of the named peers an acknowledgement needs the confirmation.
    pub fn quorum(&self) -> usize {
        self.needed.of(self.peers.len())
    }

    /// How many of the named logs must be sealed so that none that confirmed enough is missed (rule 13).
    pub fn sealed_needed(&self) -> usize {
        self.peers.len() + 1 - self.quorum()
    }
}

/// The log of an earlier epoch: kept until the backend has its last LSN (rule 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Its epoch.
    pub epoch: Epoch,
    /// The last LSN of it that counts.
    pub last: Lsn,
    /// Who has it; any one is enough.
    pub holders: Vec<Holder>,
}

/// Who has a tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A sealed log.
    Log(PeerLog),
    /// The journal of a storage router that owned the volume.
    Journal(Name),
}

/// What the registry says of a volume, as far as replication goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The storage router that owned it last.
    pub owner: Name,
    /// Its epoch.
    pub epoch: Epoch,
    /// How it was replicated.
    pub config: Config,
    /// Earlier epochs of which the backend may lack something.
    pub tails: Vec<Tail>,
    /// Set at a drained close: everything acknowledged is on the backend (rule 13).
    pub clean: bool,
}

impl Registration {
    /// A volume that nobody has owned yet.
    pub fn fresh(owner: Name, config: Config) -> Self {
        Registration { owner, epoch: Epoch(0), config, tails: Vec::new(), clean: true }
    }

    /// What the registry says when `owner`, who has recovered everything up to `last`, begins `epoch`: alone, and with
    /// the end of the epoch before as a tail until the backend has it (rule 7). The backend has everything up to
    /// `committed`.
    pub fn begun(&self, owner: Name, epoch: Epoch, committed: Lsn, last: Lsn) -> Registration {
        let before = &self.config;
        let mut tails: Vec<Tail> = self.tails.iter().filter(|tail| tail.last > committed).cloned().collect();
        if last > committed {
            let named = before.mode != Mode::None && before.status == Status::InSync;
            let logs = before.peers.iter().filter(|_| named).cloned().map(Holder::Log);
            // It has read them into its journal, and synced that.
            let holders = logs.chain([Holder::Journal(owner.clone())]).collect();
            tails.push(Tail { epoch: self.epoch, last, holders });
        }
        let mut config = Config::alone(before.mode, before.wanted, before.needed, before.on_failure);
        config.config = before.config + 1;
        Registration { owner, epoch, config, tails, clean: false }
    }
}

/// What a service says of one of its logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogInfo {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Which log.
    pub incarnation: Incarnation,
    /// Everything up to it was trimmed.
    pub base: Lsn,
    /// The last entry; `base` when there is none.
    pub last: Lsn,
    /// Up to here it survives a loss of power, as far as the storage can.
    pub flushed: Lsn,
    /// It takes nothing any more.
    pub sealed: bool,
    /// The service restarted, and the owner has not resent what it had seen confirmed.
    pub suspect: bool,
    /// Something of it that was durable is lost.
    pub damaged: bool,
}
