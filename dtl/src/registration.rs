//! The words of the registry: how a volume is replicated, and which logs hold what.

use common::{Epoch, Error, Lsn, Name, Result, mutant};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many failures the acknowledged tail of a volume survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
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

    /// The same with another policy, as an operator wants it. What the peers have was promised under the old one, so
    /// nothing is claimed of the new one until its owner has seen to it: it begins Degraded, by the same peers.
    pub fn with_policy(&self, mode: Mode, wanted: u8, needed: Needed, on_failure: OnFailure) -> Config {
        let weaker = mode <= self.mode && needed == self.needed && mode != Mode::None;
        let status = if weaker { self.status } else { Status::Degraded };
        let config = self.config + 1;
        let peers = self.peers.clone();
        Config {
            mode,
            wanted: wanted.min(2),
            needed,
            on_failure,
            status,
            peers,
            config,
            replicated: self.replicated,
        }
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
    /// The last epoch that was served: `config` is of it.
    pub epoch: Epoch,
    /// The epoch of whoever takes over now; `epoch` where nobody does. Who takes over may die before it knows what there
    /// is: then the next one finds `config` as it was.
    pub claimed: Epoch,
    /// How it was replicated.
    pub config: Config,
    /// Earlier epochs of which the backend may lack something.
    pub tails: Vec<Tail>,
    /// Set at a drained close: everything acknowledged is on the backend (rule 13).
    pub clean: bool,
    /// What forced takeovers gave up.
    #[serde(default)]
    pub losses: Vec<Loss>,
}

/// What a forced takeover gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The epoch that had accepted it.
    pub epoch: Epoch,
    /// Everything above this LSN,
    pub after: Lsn,
    /// up to this one where that is known.
    pub up_to: Option<Lsn>,
}

impl Registration {
    /// A volume that nobody has owned yet.
    pub fn fresh(owner: Name, config: Config) -> Self {
        Registration {
            owner,
            epoch: Epoch(0),
            claimed: Epoch(0),
            config,
            tails: Vec::new(),
            clean: true,
            losses: Vec::new(),
        }
    }

    /// The first step of a takeover (R5): the owner of before can change nothing from here on.
    ///
    /// # Errors
    /// `Conflict`: `epoch` is not above what was claimed.
    pub fn claim(&self, epoch: Epoch) -> Result<Registration> {
        if epoch <= self.claimed || epoch <= self.epoch {
            return Err(Error::conflict(format!("epoch {} was claimed already", self.claimed)));
        }
        Ok(Registration { claimed: epoch, ..self.clone() })
    }

    /// The registration with what its owner of `epoch` proposes; or the epoch and configuration that it has, which
    /// go back to the owner as [`crate::owner::Outcome::Refused`].
    ///
    /// # Errors
    /// Somebody took over, or the configuration changed meanwhile.
    pub fn propose(&self, epoch: Epoch, new: &Config) -> Result<Registration, (Epoch, Config)> {
        if self.claimed != epoch || self.epoch != epoch || self.config.config + 1 != new.config {
            return Err((self.claimed.max(self.epoch), self.config.clone()));
        }
        // The flag is cleared before the first acknowledgement, by its own change.
        Ok(Registration { config: new.clone(), ..self.clone() })
    }

    /// The last step of a takeover, before anything is served: `last` is the end of what was recovered, and the backend
    /// has everything up to `committed`. The logs of the old epoch become a tail (rule 7), the new epoch begins alone.
    /// What an operator gave up is `loss`.
    ///
    /// # Errors
    /// `Fenced`: somebody else claimed a higher epoch.
    pub fn taken_over(
        &self,
        owner: Name,
        epoch: Epoch,
        committed: Lsn,
        last: Lsn,
        loss: Option<Loss>,
    ) -> Result<Registration> {
        if self.claimed != epoch || self.epoch >= epoch {
            return Err(Error::fenced(format!("epoch {} was claimed, epoch {epoch} is over", self.claimed)));
        }
        // Of an earlier epoch nothing counts any more beyond what was recovered.
        let mut tails = self.tails.clone();
        let logs = self.config.peers.iter().cloned().map(Holder::Log);
        let holders = logs.chain([Holder::Journal(self.owner.clone())]).collect();
        if !mutant::is_on("tail-not-registered") {
            tails.push(Tail { epoch: self.epoch, last, holders });
        }
        tails.iter_mut().for_each(|t| t.last = t.last.min(last));
        tails.retain(|t| t.last > committed);
        let c = &self.config;
        let config = match mutant::is_on("epoch-begins-in-sync") {
            true => c.clone(),
            false => Config::alone(c.mode, c.wanted, c.needed, c.on_failure),
        };
        let mut losses = self.losses.clone();
        losses.extend(loss);
        Ok(Registration { owner, epoch, claimed: epoch, config, tails, clean: false, losses })
    }

    /// The registration without the tails that the backend has, once a Manifest has committed `committed`. Their
    /// logs may be trimmed and forgotten only after this is in the registry.
    pub fn committed(&self, committed: Lsn) -> Registration {
        let mut new = self.clone();
        new.tails.retain(|t| t.last > committed && !mutant::is_on("tails-dropped-at-once"));
        new
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

#[cfg(test)]
mod tests;
