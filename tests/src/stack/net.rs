//! The network: who reaches whom. A direction that is cut delivers nothing until it is whole again; what was sent
//! meanwhile arrives then, as TCP does it. A process that dies takes its connections with it, or leaves them silent.

use super::gate::Gate;
use super::signal::Signal;
use common::Clock;
use common::sim::SimClock;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

/// How long an attempt to connect waits for an answer.
const CONNECT: Duration = Duration::from_secs(1);
const BUFFER: usize = 256 << 10;

/// Who is on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A storage router.
    Router(usize),
    /// All clients.
    Client,
    /// The registry.
    Registry,
    /// The object store.
    Store,
}

/// A process on the network.
#[derive(Clone)]
pub struct Place {
    /// Where it is.
    pub node: Node,
    /// Its life.
    pub gate: Gate,
    /// Whether its machine says nothing when the process dies: a power cut and not a kill.
    pub silent: Arc<std::sync::atomic::AtomicBool>,
}

impl Place {
    /// A process that lives.
    pub fn new(node: Node, gate: Gate) -> Self {
        Place { node, gate, silent: Arc::default() }
    }

    async fn broken(&self) {
        self.gate.death().await;
        if self.silent.load(std::sync::atomic::Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

/// The network.
pub struct Net {
    clock: Arc<SimClock>,
    random: Mutex<fastrand::Rng>,
    /// How often each direction is cut at present.
    cuts: Signal<BTreeMap<(Node, Node), u32>>,
}

impl Net {
    /// A network on which everybody reaches everybody.
    pub fn new(clock: Arc<SimClock>, seed: u64) -> Arc<Net> {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Arc::new(Net { clock, random, cuts: Signal::default() })
    }

    /// Cuts a direction; to be healed as often as it was cut.
    pub fn cut(&self, from: Node, to: Node) {
        self.cuts.change(|cuts| *cuts.entry((from, to)).or_default() += 1);
    }

    /// Takes back one cut of a direction.
    pub fn heal(&self, from: Node, to: Node) {
        self.cuts.change(|cuts| {
            if let Some(n) = cuts.get_mut(&(from, to)) {
                *n = n.saturating_sub(1);
            }
        });
    }

    /// Everybody reaches everybody again.
    pub fn heal_all(&self) {
        self.cuts.change(BTreeMap::clear);
    }

    /// Whether a direction delivers.
    pub fn is_open(&self, from: Node, to: Node) -> bool {
        self.cuts.see(|cuts| cuts.get(&(from, to)).is_none_or(|n| *n == 0))
    }

    /// Waits until a direction delivers.
    pub async fn opened(&self, from: Node, to: Node) {
        self.cuts.wait(|cuts| cuts.get(&(from, to)).is_none_or(|n| *n == 0)).await;
    }

    /// The time that a message takes.
    pub async fn travel(&self) {
        let time = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            match random.u32(..100) {
                0 => random.u64(5_000..60_000),
                1..=40 => random.u64(100..2_000),
                _ => 50,
            }
        };
        self.clock.sleep(Duration::from_micros(time)).await;
    }

    /// A connection from one process to another: both ends.
    ///
    /// # Errors
    /// Nothing comes back.
    pub async fn connect(self: &Arc<Self>, from: &Place, to: &Place) -> Result<(DuplexStream, DuplexStream)> {
        self.travel().await;
        if !self.is_open(from.node, to.node) || !self.is_open(to.node, from.node) {
            self.clock.sleep(CONNECT).await;
            return Err(ErrorKind::TimedOut.into());
        }
        if to.gate.is_dead() {
            return Err(Error::from(ErrorKind::ConnectionRefused));
        }
        let (mine, near) = tokio::io::duplex(BUFFER);
        let (far, theirs) = tokio::io::duplex(BUFFER);
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        tokio::spawn(self.clone().carry(near_read, far_write, from.clone(), to.clone()));
        tokio::spawn(self.clone().carry(far_read, near_write, to.clone(), from.clone()));
        Ok((mine, theirs))
    }

    /// Carries one direction of a connection.
    async fn carry(
        self: Arc<Self>,
        mut read: ReadHalf<DuplexStream>,
        mut write: WriteHalf<DuplexStream>,
        from: Place,
        to: Place,
    ) {
        let mut bytes = vec![0; 64 << 10];
        let carry = async {
            loop {
                let n = read.read(&mut bytes).await.unwrap_or(0);
                from.gate.pass().await;
                self.travel().await;
                self.opened(from.node, to.node).await;
                to.gate.pass().await;
                if n == 0 || write.write_all(&bytes[..n]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = from.broken() => {}
            () = to.broken() => {}
            () = carry => {}
        }
        let _ = write.shutdown().await;
    }
}
