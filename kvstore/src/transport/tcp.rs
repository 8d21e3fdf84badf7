//! Messages to members over TCP or TLS: one task and one bounded queue for each.

use super::frame::{Hello, greet, greeted, write};
use super::{Transport, connect};
use crate::node::message::PeerMessage;
use common::{Clock, Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Messages that wait for a member; more are lost.
const QUEUE: usize = 1024;
/// A member that does not answer for so long is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

struct Link {
    address: String,
    queue: mpsc::Sender<PeerMessage>,
}

/// What all links know.
struct Common {
    group: u128,
    member: u64,
    tls: Option<Arc<rustls::ClientConfig>>,
    clock: Arc<dyn Clock>,
    /// Members whose messages were lost.
    lost: mpsc::Sender<u64>,
    /// Where this member listens, as far as the group knows.
    address: Mutex<String>,
}

/// Links to the other members.
pub(crate) struct TcpTransport {
    common: Arc<Common>,
    links: Mutex<(BTreeMap<u64, Link>, JoinSet<()>)>,
}

impl TcpTransport {
    /// Links of `member` of `group`; `lost` hears of members whose messages were lost.
    pub fn new(
        group: u128,
        member: u64,
        tls: Option<Arc<rustls::ClientConfig>>,
        clock: Arc<dyn Clock>,
        lost: mpsc::Sender<u64>,
    ) -> Self {
        Self {
            common: Arc::new(Common { group, member, tls, clock, lost, address: Mutex::default() }),
            links: Mutex::default(),
        }
    }
}

impl Transport for TcpTransport {
    fn send(&self, to: u64, message: PeerMessage) {
        let links = self.links.lock();
        let Some(link) = links.0.get(&to) else { return };
        if link.queue.try_send(message).is_err() {
            let _ = self.common.lost.try_send(to);
        }
    }

    fn set_members(&self, members: &BTreeMap<u64, String>) {
        *self.common.address.lock() = members.get(&self.common.member).cloned().unwrap_or_default();
        let mut links = self.links.lock();
        let (links, tasks) = &mut *links;
        links.retain(|id, link| members.get(id).is_some_and(|address| *address == link.address));
        while tasks.try_join_next().is_some() {}
        for (id, address) in members {
            if *id == self.common.member || links.contains_key(id) {
                continue;
            }
            let (queue, messages) = mpsc::channel(QUEUE);
            let (common, id, address) = (self.common.clone(), *id, address.clone());
            links.insert(id, Link { address: address.clone(), queue });
            tasks.spawn(carry(common, id, address, messages));
        }
    }
}

/// Carries messages to one member until nobody sends any more.
async fn carry(common: Arc<Common>, to: u64, address: String, mut messages: mpsc::Receiver<PeerMessage>) {
    let mut pause = FIRST_PAUSE;
    while let Some(first) = messages.recv().await {
        match converse(&common, to, &address, first, &mut messages, &mut pause).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(member = to, address, %error, "a member of the registry is not reached")
            }
        }
        let _ = common.lost.try_send(to);
        common.clock.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        // What waited is old.
        while messages.try_recv().is_ok() {}
    }
}

async fn converse(
    common: &Common,
    to: u64,
    address: &str,
    first: PeerMessage,
    messages: &mut mpsc::Receiver<PeerMessage>,
    pause: &mut Duration,
) -> Result<()> {
    let late = || Error::unavailable("it takes too long");
    let open = async {
        let mut stream = connect(address, common.tls.as_ref()).await?;
        let own = common.address.lock().clone();
        greet(&mut stream, Hello::Peer { group: common.group, from: common.member, to, address: own })
            .await?;
        match greeted(&mut stream).await? {
            Hello::Welcome { group, member } if (group, member) == (common.group, to) => Ok(stream),
            other => {
                Err(Error::invalid(format!("at {address} answers {other:?}, not member {to} of our group")))
            }
        }
    };
    let stream = within(&*common.clock, open).await.ok_or_else(late)??;
    *pause = FIRST_PAUSE;
    let mut stream = BufWriter::with_capacity(64 << 10, stream);
    let mut next = Some(first);
    loop {
        let message = match next.take().or_else(|| messages.try_recv().ok()) {
            Some(message) => message,
            None => {
                let flush = async { stream.flush().await.map_err(|e| Error::io("sending", &e)) };
                within(&*common.clock, flush).await.ok_or_else(late)??;
                match messages.recv().await {
                    Some(message) => message,
                    None => return Ok(()),
                }
            }
        };
        let bytes = message.encode()?;
        within(&*common.clock, write(&mut stream, &[&bytes])).await.ok_or_else(late)??;
    }
}

/// What `future` gives, unless it takes too long.
async fn within<T>(clock: &dyn Clock, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = future => Some(done),
        () = clock.sleep(PATIENCE) => None,
    }
}
