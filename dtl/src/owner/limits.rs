//! Up to where acknowledgements may go: the lowest limit of all configurations that may be true.

use super::{Link, Owner};
use crate::registration::{Config, Mode, Status};
use common::{Lsn, mutant};
use smallvec::SmallVec;

const FREE: Lsn = Lsn(u64::MAX);

impl Owner {
    /// Computes the limits anew; to be called after each change of what they depend on.
    pub(super) fn refresh(&mut self) {
        if self.fenced {
            return;
        }
        let (mut ack, mut flush) = (FREE, FREE);
        if mutant::is_on("acks-by-the-new-config-only") {
            // WRONG: the old one may still be what a takeover reads.
            let newest = self.armed.as_ref().or(self.proposals.last()).unwrap_or(&self.base);
            (ack, flush) = (self.write_limit(newest), self.flush_limit(newest));
        } else {
            for config in self.possible() {
                ack = ack.min(self.write_limit(config));
                flush = flush.min(self.flush_limit(config));
            }
        }
        (self.may_ack, self.may_flush) = (ack, flush);
    }

    /// Whether the peers of `config` have everything that was promised.
    pub(super) fn covers_promises(&self, config: &Config) -> bool {
        self.write_limit(config) >= self.acked && self.flush_limit(config) >= self.flush_acked
    }

    /// What `config` has peers confirm before a write is acknowledged.
    fn write_limit(&self, config: &Config) -> Lsn {
        match (config.mode, config.status) {
            (Mode::Sync, Status::InSync) => self.quorum(config, |l| l.confirmed),
            _ => FREE,
        }
    }

    /// What `config` has peers make durable before a flush is acknowledged.
    fn flush_limit(&self, config: &Config) -> Lsn {
        match (config.mode, config.status) {
            (Mode::Sync | Mode::Async, Status::InSync) => self.quorum(config, |l| l.flushed),
            _ => FREE,
        }
    }

    /// What as many peers have as `config` needs.
    pub(super) fn quorum(&self, config: &Config, of: impl Fn(&Link) -> Lsn) -> Lsn {
        // One who is not there has nothing; a lost log is not there.
        let mut have: SmallVec<[Lsn; 4]> = config
            .peers
            .iter()
            .map(|p| self.link(p).filter(|l| l.state != super::LinkState::Lost).map_or(Lsn(0), &of))
            .collect();
        have.sort_unstable_by(|a, b| b.cmp(a));
        // InSync without a peer promises nothing to anybody: it can't be acknowledged by.
        config.quorum().checked_sub(1).and_then(|n| have.get(n)).copied().unwrap_or(Lsn(0))
    }
}
