//! Members come, move and go. Each step looks at what is there first, so it may have been done before.

use super::may_pass;
use common::{Clock, Error, ErrorKind, Result};
use kvstore::Client;
use kvstore::node::{Change, Status};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at what became of a step.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is told what is waited for.
const TELL: Duration = Duration::from_secs(5);
/// Refusals in a row that are taken for final; fewer may come from a member that is behind.
const REFUSALS: u32 = 5;

/// Changes the members of a group.
pub struct Seats {
    pub client: Client,
    pub clock: Arc<dyn Clock>,
    /// For how long it is tried; none is for ever.
    pub limit: Option<Duration>,
}

/// Counts what went wrong, and says it now and then.
struct Patience {
    clock: Arc<dyn Clock>,
    until: Option<Duration>,
    told: Duration,
    refusals: u32,
}

impl Seats {
    /// Adds `member`, waits until it has what the others have, and lets it vote.
    ///
    /// Errors: `Conflict` when it was removed meanwhile.
    pub async fn take(&self, member: u64, address: &str) -> Result<()> {
        let mut patience = self.patience();
        loop {
            let status = match self.client.status().await {
                Ok(status) => status,
                Err(error) => {
                    patience.bear("the cluster does not answer", error).await?;
                    continue;
                }
            };
            let members = &status.configuration;
            let change = if is_voter(&status, member) {
                return Ok(());
            } else if members.contains(member) {
                Change::Promote { member }
            } else {
                Change::AddLearner { member, address: address.to_string() }
            };
            match self.client.change(vec![change]).await {
                Ok(()) => patience.refusals = 0,
                Err(error) => patience.bear("waiting to become a member of the cluster", error).await?,
            }
        }
    }

    /// Sees to it that the group reaches `member` at `address`.
    pub async fn relocate(&self, member: u64, address: &str) -> Result<()> {
        let mut patience = self.patience();
        loop {
            let status = self.client.status().await?;
            if status.members.get(&member).is_some_and(|known| known == address) {
                return Ok(());
            }
            let change = Change::Relocate { member, address: address.to_string() };
            match self.client.change(vec![change]).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    patience.bear("waiting until the cluster knows this router's address", error).await?;
                }
            }
        }
    }

    /// Takes the vote of `member` away and then removes it.
    ///
    /// Errors: `Conflict` when it leads: then it lives, and has to leave by itself.
    pub async fn remove(&self, member: u64) -> Result<()> {
        let mut patience = self.patience();
        loop {
            let status = match self.client.status().await {
                Ok(status) => status,
                Err(error) => {
                    patience.bear("the cluster does not answer", error).await?;
                    continue;
                }
            };
            if !status.configuration.contains(member) {
                return Ok(());
            }
            let change = match is_voter(&status, member) {
                true => Change::Demote { member },
                false => Change::Remove { member },
            };
            match self.client.change(vec![change]).await {
                Ok(()) => patience.refusals = 0,
                // A member that answered was behind.
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => patience.bear("waiting until the cluster has let a member go", error).await?,
            }
        }
    }

    fn patience(&self) -> Patience {
        let now = self.clock.now();
        Patience { clock: self.clock.clone(), until: self.limit.map(|l| now + l), told: now, refusals: 0 }
    }
}

fn is_voter(status: &Status, member: u64) -> bool {
    let members = &status.configuration;
    members.voters.contains(&member) && members.voters_outgoing.is_empty()
}

impl Patience {
    /// Waits a little, unless the error is final.
    async fn bear(&mut self, what: &str, error: Error) -> Result<()> {
        if error.kind == ErrorKind::Conflict {
            self.refusals += 1;
        }
        let refused = error.kind == ErrorKind::Conflict && self.refusals < REFUSALS;
        let late = self.until.is_some_and(|until| self.clock.now() >= until);
        if late || (!may_pass(&error) && !refused) {
            return Err(error.context(what));
        }
        if self.clock.now() >= self.told + TELL {
            self.told = self.clock.now();
            tracing::warn!(%error, "{what}");
        }
        self.clock.sleep(PAUSE).await;
        Ok(())
    }
}
