//! The registry and the DTL of other routers, as a volume's replication sees them.
//!
//! Each change is a compare and swap of the volume's record; one that met another change looks again. What the registry
//! did not answer may have happened, and is told so.

use super::{Cluster, changed_meanwhile};
use crate::registry::{Incarnation, Stored, VolumeRecord};
use async_trait::async_trait;
use common::kv::KvAssert;
use common::{Epoch, Error, ErrorKind, Lsn, Name, Result, VolumeId, mutant};
use dtl::client::Client;
use dtl::owner::Outcome;
use dtl::placement::{Node, place};
use dtl::{Config, Registration, Tail};
use std::sync::Arc;
use volumedriver::{Peers, Recovered};

/// Tries of a change that meets another one.
const TRIES: usize = 16;

/// Of the volumes that were claimed in the name of one seat.
pub(crate) struct RegistryPeers {
    cluster: Arc<Cluster>,
    holder: Incarnation,
}

impl RegistryPeers {
    pub(crate) fn new(cluster: Arc<Cluster>, holder: Incarnation) -> Self {
        Self { cluster, holder }
    }

    async fn record(&self, volume: VolumeId) -> Result<Stored<VolumeRecord>> {
        let found = self.cluster.records.volume(volume).await?;
        found.ok_or_else(|| Error::not_found(format!("the registry has no volume {volume} any more")))
    }

    /// A router whose lease has ended changes nothing any more, also with a request that was long on its way.
    fn still_seated(&self) -> Vec<KvAssert> {
        match mutant::is_on("old-owner-proposes") {
            true => Vec::new(),
            false => vec![KvAssert::LeaseLive(self.holder.lease)],
        }
    }

    /// Replaces the record of a volume that this seat holds.
    async fn change(
        &self,
        volume: VolumeId,
        change: impl Fn(&VolumeRecord) -> Result<VolumeRecord> + Send + Sync,
    ) -> Result<VolumeRecord> {
        for _ in 0..TRIES {
            let Stored { record, revision } = self.record(volume).await?;
            if record.holder.as_ref() != Some(&self.holder) {
                let now = record.holder.map_or("nobody".to_owned(), |holder| holder.node.to_string());
                return Err(Error::fenced(format!(
                    "volume {volume} is not this router's any more: {now} owns it"
                )));
            }
            let new = change(&record)?;
            if new == record {
                return Ok(record);
            }
            match self
                .cluster
                .records
                .put_volumes(&[(volume, new.clone(), revision)], self.still_seated())
                .await
            {
                Ok(_) => return Ok(new),
                Err(error) if changed_meanwhile(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable(format!("the record of volume {volume} changes too often: try again")))
    }
}

#[async_trait]
impl Peers for RegistryPeers {
    fn node(&self) -> &Name {
        &self.cluster.me.name
    }

    fn client(&self, node: &Name) -> Option<Arc<Client>> {
        self.cluster.dtl(node)
    }

    async fn recruit(&self, volume: VolumeId, want: usize, avoid: &[Name]) -> Vec<(Name, Arc<Client>)> {
        let me = &self.cluster.me.name;
        let nodes = self.cluster.nodes();
        let nodes: Vec<Node> = nodes
            .iter()
            .map(|(name, node)| Node {
                name: name.clone(),
                domains: node.domains.clone(),
                recovery_domains: node.recovery_domains.clone(),
                alive: node.addresses.dtl.is_some() && !node.draining,
                logs: 0,
            })
            .collect();
        let Some(owner) = nodes.iter().find(|node| node.name == *me) else { return Vec::new() };
        if mutant::is_on("owner-is-its-own-peer") {
            return self.cluster.dtl(me).map(|client| (me.clone(), client)).into_iter().collect();
        }
        let placed = place(volume, owner, &nodes, &[], avoid, want);
        placed
            .into_iter()
            .filter_map(|placed| {
                if placed.shares_a_domain {
                    tracing::debug!(%volume, node = %placed.node, "the DTL's peer may fail together with the owner");
                }
                let client = self.cluster.dtl(&placed.node)?;
                Some((placed.node, client))
            })
            .collect()
    }

    async fn propose(&self, volume: VolumeId, expect: (Epoch, u64), new: &Config) -> Outcome {
        for _ in 0..TRIES {
            let Stored { record, revision } = match self.record(volume).await {
                Ok(stored) => stored,
                Err(error) if error.kind == ErrorKind::NotFound => return Outcome::Refused(None),
                Err(_) => return Outcome::Unknown,
            };
            if record.holder.as_ref() != Some(&self.holder) {
                // It was let go or claimed: this epoch changes nothing any more.
                return Outcome::Refused(None);
            }
            let registration = match record.registration.propose(expect.0, new) {
                Ok(registration) => registration,
                Err(found) => return Outcome::Refused(Some(found)),
            };
            let record = VolumeRecord { registration, ..record };
            match self.cluster.records.put_volumes(&[(volume, record, revision)], self.still_seated()).await {
                Ok(_) => return Outcome::Applied,
                // Something else in the record may have changed.
                Err(error) if changed_meanwhile(&error) => {}
                Err(_) => return Outcome::Unknown,
            }
        }
        Outcome::Unknown
    }

    async fn begin(&self, volume: VolumeId, recovered: Recovered) -> Result<Registration> {
        let (me, journal) = (&self.cluster.me.name, &self.cluster.me.write_buffer);
        let begun = self.change(volume, |record| {
            let Recovered { epoch, committed, last, lost } = recovered.clone();
            if record.registration.epoch == epoch {
                // An earlier try of this that was not answered.
                return Ok(record.clone());
            }
            let mut registration = record.registration.clone();
            if epoch > registration.claimed {
                // The backend knew a higher one than the registry.
                registration = registration.claim(epoch)?;
            }
            let registration = registration.taken_over(me.clone(), epoch, committed, last, lost)?;
            Ok(VolumeRecord {
                registration,
                journal: Some(journal.clone()),
                moving_to: None,
                ..record.clone()
            })
        });
        Ok(begun.await?.registration)
    }

    async fn drop_tails(&self, volume: VolumeId, epoch: Epoch, committed: Lsn) -> Result<Vec<Tail>> {
        let changed = self.change(volume, |record| {
            if record.registration.epoch != epoch {
                return Err(Error::fenced(format!("epoch {epoch} of volume {volume} is over")));
            }
            Ok(VolumeRecord { registration: record.registration.committed(committed), ..record.clone() })
        });
        Ok(changed.await?.registration.tails)
    }
}
