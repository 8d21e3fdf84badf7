//! vDisks that are attached while NBD clients use them: one attachment for each, shared by their connections.
//!
//! The handle that an NBD connection has is the device itself, so nothing stands between a request and the router. How
//! many have it says whether it is in use.

use crate::edge::connect::{Connect, check_name};
use async_trait::async_trait;
use common::{BlockDevice, Error, ExportInfo, Exports, Result};
use edge_client::Device;
use edge_client::wire::Mode;
use futures::future::join_all;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Locked while it is being attached or detached: who comes meanwhile waits for that.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Device>>>>;

/// What is attached here.
pub struct Attached {
    connect: Connect,
    /// What clients may have; empty: anything.
    allowed: Vec<String>,
    mode: Mode,
    slots: Mutex<BTreeMap<String, Slot>>,
}

impl Attached {
    /// Nothing yet.
    pub fn new(connect: Connect, allowed: Vec<String>, mode: Mode) -> Self {
        Attached { connect, allowed, mode, slots: Mutex::default() }
    }

    /// Without a name it is the only one that there is.
    fn resolve<'n>(&'n self, name: &'n str) -> Result<&'n str> {
        match (name, &self.allowed[..]) {
            ("", [only]) => Ok(only),
            (name, []) => check_name(name).map(|()| name).map_err(|e| Error::invalid(e.to_string())),
            (name, allowed) if allowed.iter().any(|one| one == name) => Ok(name),
            (name, _) => Err(Error::not_found(format!("'{}' is not served here", name.escape_debug()))),
        }
    }

    /// Detaches what no client has any more.
    pub async fn tidy(&self) {
        let slots: Vec<(String, Slot)> =
            self.slots.lock().iter().map(|(n, s)| (n.clone(), s.clone())).collect();
        join_all(slots.iter().map(|(name, slot)| async move {
            // One that is locked is in somebody's hands.
            let Ok(mut slot) = slot.try_lock() else { return };
            if slot.as_ref().is_some_and(|device| Arc::strong_count(device) == 1)
                && let Some(device) = slot.take()
            {
                // Its client did not ask for it, and is told nothing.
                let _ = detach(name, &device).await;
            }
        }))
        .await;
        drop(slots);
        self.slots.lock().retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|device| device.is_some())
        });
    }

    /// Flushes and detaches everything; no client is there any more.
    ///
    /// # Errors
    /// Something could not be flushed: it may be lost.
    pub async fn close(&self) -> Result<()> {
        let slots = std::mem::take(&mut *self.slots.lock());
        let closed = join_all(slots.iter().map(|(name, slot)| async move {
            match slot.lock().await.take() {
                Some(device) => detach(name, &device).await,
                None => Ok(()),
            }
        }));
        closed.await.into_iter().collect()
    }
}

/// Makes durable what its clients left, and gives the vDisk up.
async fn detach(name: &str, device: &Device) -> Result<()> {
    let flushed = if device.ended().is_none() { device.flush().await } else { Ok(()) };
    device.close().await;
    match &flushed {
        Ok(()) => tracing::info!(export = name, "detached"),
        Err(error) => {
            tracing::error!(export = name, %error, "detached, and what was not flushed may be lost")
        }
    }
    flushed
}

#[async_trait]
impl Exports for Attached {
    async fn list(&self) -> Result<Vec<ExportInfo>> {
        let name = |name: &String| ExportInfo { name: name.clone(), description: String::new() };
        Ok(self.allowed.iter().map(name).collect())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        let name = self.resolve(name)?;
        let slot = self.slots.lock().entry(name.to_owned()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(device) = &*slot {
            match device.ended() {
                None => return Ok(device.clone()),
                // Those that have it see its errors; who comes now is served anew.
                Some(error) => tracing::warn!(export = name, %error, "attached anew"),
            }
        }
        // A snapshot has nobody who writes.
        let mode = if name.contains('@') { Mode::ReadOnly } else { self.mode };
        let device = Arc::new(self.connect.attach(name, mode).await?);
        tracing::info!(
            export = name,
            attachment = format!("{:032x}", device.attachment()),
            router = device.home().map(|home| home.router),
            "attached"
        );
        *slot = Some(device.clone());
        Ok(device)
    }
}
