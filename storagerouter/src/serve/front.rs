//! The door of NBD clients: vDisks of this router, and through an edge client of its own those of others.
//!
//! A vDisk of another router is asked for where any edge client may ask: at this router, which says who owns it. So
//! clients here see latency and not errors while owners die and vDisks move between others. Does not own: what is open
//! here; a client of that is cut off when it moves away.

use crate::edge::attached::Attached;
use crate::edge::connect::Connect;
use async_trait::async_trait;
use common::{BlockDevice, Clock, ErrorKind, ExportInfo, Exports, Result};
use edge_client::transport::Dialer;
use edge_client::wire::Mode;
use objectrouter::RouterExports;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks for vDisks of others that nobody uses.
const TIDY: Duration = Duration::from_secs(1);

/// See the module's head.
pub struct FrontDoor {
    local: RouterExports,
    remote: Attached,
}

impl FrontDoor {
    /// `own` are the addresses of this router's own edge server.
    pub fn new(local: RouterExports, own: Vec<String>, dialer: Arc<Dialer>, clock: Arc<dyn Clock>) -> Self {
        let node = local.0.node().to_string();
        let client = format!("NBD clients of storage router {node}");
        let connect = Connect::of_a_router(own, dialer, (client, node), clock);
        FrontDoor { local, remote: Attached::new(connect, Vec::new(), Mode::Exclusive) }
    }

    /// Gives up vDisks of others that no client uses, for ever.
    pub async fn tidy(&self, clock: &dyn Clock) {
        loop {
            clock.sleep(TIDY).await;
            self.remote.tidy().await;
        }
    }

    /// Flushes and gives up all vDisks of others; no client is there any more.
    ///
    /// # Errors
    /// Something could not be flushed: it may be lost.
    pub async fn close(&self) -> Result<()> {
        self.remote.close().await
    }
}

#[async_trait]
impl Exports for FrontDoor {
    async fn list(&self) -> Result<Vec<ExportInfo>> {
        self.local.list().await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        match self.local.open(name).await {
            Err(error) if error.kind == ErrorKind::NotOwner => {
                self.remote.open(&self.local.0.export_name(name)?).await
            }
            opened => opened,
        }
    }
}
