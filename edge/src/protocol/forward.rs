//! Volumes that are served elsewhere: requests go to the owner and replies come back, as they are.

use super::door::Attached;
use async_trait::async_trait;
use common::{Clock, Error, ErrorKind, Geometry, Lsn, Result};
use edge_client::transport::Dial;
use edge_client::trunk::{Channel, Patience, Trunk};
use edge_client::wire::{Attach, Credit, Granted, Outcome, Refusal, Reply, Request};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Connections to other routers, each shared by all clients of volumes that are owned there.
pub struct Forwarder {
    dial: Arc<dyn Dial>,
    patience: Patience,
    clock: Arc<dyn Clock>,
    trunks: Mutex<HashMap<String, Arc<Trunk>>>,
}

impl Forwarder {
    /// Connects when it is asked to.
    pub fn new(dial: Arc<dyn Dial>, patience: Patience, clock: Arc<dyn Clock>) -> Self {
        Forwarder { dial, patience, clock, trunks: Mutex::default() }
    }

    /// Attaches a client through the owner at one of `addresses`.
    ///
    /// # Errors
    /// What the owner says; `Unavailable`, naming each address, when none answers.
    pub async fn attach(
        &self,
        addresses: &[String],
        mut attach: Attach,
    ) -> Result<Arc<dyn Attached>, Refusal> {
        attach.hops = attach.hops.saturating_add(1);
        let mut reasons = Vec::new();
        for address in addresses {
            match self.trunk(address).await {
                Ok(trunk) => {
                    let channel = trunk.attach(attach).await?;
                    let Some(granted) = channel.granted() else { break };
                    let granted = Granted { forwarded: true, ..granted };
                    return Ok(Arc::new(Forwarded { channel, granted, _trunk: trunk }));
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(Error::unavailable(format!("the owner does not answer: {}", reasons.join("; "))).into())
    }

    async fn trunk(&self, address: &str) -> Result<Arc<Trunk>> {
        let known = self.trunks.lock().get(address).filter(|trunk| !trunk.is_broken()).cloned();
        if let Some(trunk) = known {
            return Ok(trunk);
        }
        let trunk = Arc::new(Trunk::connect(&*self.dial, address, self.patience, self.clock.clone()).await?);
        let mut trunks = self.trunks.lock();
        trunks.retain(|_, trunk| !trunk.is_broken());
        // Of two that connected at a time one is enough.
        Ok(trunks.entry(address.to_owned()).or_insert(trunk).clone())
    }
}

struct Forwarded {
    channel: Channel,
    granted: Granted,
    _trunk: Arc<Trunk>,
}

#[async_trait]
impl Attached for Forwarded {
    fn granted(&self) -> Granted {
        self.granted
    }

    fn geometry(&self) -> Geometry {
        self.channel.granted().unwrap_or(self.granted).geometry
    }

    fn heard(&self) {}

    async fn call(&self, request: Request) -> Reply {
        let (sequence, epoch) = (request.sequence, request.epoch);
        match self.channel.call(request).await {
            Ok(reply) => Reply { grant: Credit::default(), ..reply },
            Err(error) => {
                // Whatever it is, only another session may ask again.
                let outcome = Outcome::Failed(Error::new(ErrorKind::NotOwner, error.message()));
                let grant = Credit::default();
                Reply { sequence, epoch, lsn: Lsn(0), in_sync: false, grant, outcome }
            }
        }
    }

    async fn detach(&self) {
        self.channel.detach().await;
    }
}
