//! A process that owns a volume, as the simulated world has it.

use super::{Journal, Peer, V, entry};
use common::{Epoch, Lsn, Name, VolumeId};
use dtl::client::{Client, LinkState, Progress, Replica, Settings, Start};
use dtl::owner::{Action, Owner, Patience};
use dtl::placement::{self, Node};
use dtl::transport::{Dial, Stream};
use dtl::{Config, Entry, PeerLog};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// A way to a peer that can be closed for one client.
struct Gate(Arc<Peer>, Arc<AtomicBool>);

#[async_trait::async_trait]
impl Dial for Gate {
    async fn dial(&self) -> std::io::Result<Stream> {
        match self.1.load(Ordering::Relaxed) {
            true => self.0.raw().map(Stream::any).ok_or_else(|| std::io::ErrorKind::ConnectionRefused.into()),
            false => Err(std::io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

pub struct Linked {
    pub log: Option<PeerLog>,
    pub node: Name,
    pub replica: Replica,
    pub progress: watch::Receiver<Progress>,
}

/// A process that owns, or thinks so.
pub struct Process {
    pub epoch: u64,
    pub owner: Owner,
    pub journal: Arc<Journal>,
    pub clients: BTreeMap<Name, Client>,
    pub gate: Arc<AtomicBool>,
    pub links: Vec<Linked>,
    pub serial: u64,
    pub last: u64,
    pub acked: u64,
    pub flush_acked: u64,
    /// Everything that it gave out.
    pub log: BTreeMap<u64, Entry>,
    pub asked: Option<Config>,
    pub fenced: bool,
}

pub fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn settings() -> Settings {
    Settings { queue: 64 << 10, chunk: 8 << 10, reconnect: Duration::from_millis(50), ..Settings::default() }
}

impl Process {
    pub fn new(
        world: (&BTreeMap<Name, Arc<Peer>>, &Arc<dyn common::Clock>),
        epoch: u64,
        config: Config,
        last: u64,
    ) -> Process {
        let gate = Arc::new(AtomicBool::new(true));
        let connect = |(n, p): (&Name, &Arc<Peer>)| {
            (n.clone(), Client::new(Arc::new(Gate(p.clone(), gate.clone())), settings(), world.1.clone()))
        };
        let patience = Patience { close_enough: 32, ..Patience::default() };
        Process {
            epoch,
            owner: Owner::new(Epoch(epoch), config, Lsn(last), patience),
            journal: Arc::new(Journal::default()),
            clients: world.0.iter().map(connect).collect(),
            gate,
            links: Vec::new(),
            serial: 0,
            last,
            acked: last,
            flush_acked: last,
            log: BTreeMap::new(),
            asked: None,
            fenced: false,
        }
    }

    pub fn write(&mut self, n: u64, len: usize, now: Duration) {
        for _ in 0..n {
            self.last += 1;
            let entry = entry(V, self.epoch, self.last, len);
            self.log.insert(self.last, entry.clone());
            self.journal.push(entry.clone());
            self.owner.accepted(Lsn(self.last), now);
            for link in &self.links {
                link.replica.append(&entry);
            }
        }
    }

    /// What the volume's task does: hears the peers, asks and answers.
    pub fn turn(&mut self, random: &mut fastrand::Rng, committed: u64, now: Duration) {
        for link in &mut self.links {
            let progress = *link.progress.borrow_and_update();
            let Some(incarnation) = progress.incarnation else { continue };
            let log = PeerLog { node: link.node.clone(), incarnation };
            if link.log.is_none() {
                self.owner.joined(log.clone(), now);
                link.log = Some(log.clone());
            }
            self.owner.progress(&log, progress.confirmed, progress.flushed, progress.state, now);
        }
        self.links.retain(|l| l.log.is_some() || l.progress.borrow().state != LinkState::Lost);
        self.owner.tick(now);
        let to = self.acked + random.u64(..=self.last - self.acked);
        if self.owner.acknowledge(Lsn(to)) {
            self.acked = to;
        }
        if random.u8(..3) == 0 {
            let lsn = Lsn(self.acked);
            if self.owner.flush_wanted(lsn, now) {
                self.links.iter().for_each(|link| link.replica.flush(lsn));
            }
        }
        let to = self.flush_acked + random.u64(..=self.acked - self.flush_acked);
        if self.owner.acknowledge_flush(Lsn(to)) {
            self.flush_acked = to;
        }
        while let Some(action) = self.owner.take_action() {
            match action {
                Action::Propose { new, .. } => self.asked = Some(new),
                Action::Recruit { want, avoid } => self.recruit(want, &avoid, committed),
                Action::Flush(log, lsn) => {
                    for link in self.links.iter().filter(|l| l.log.as_ref() == Some(&log)) {
                        link.replica.flush(lsn);
                    }
                }
                Action::Release(log) => self.links.retain(|l| l.log.as_ref() != Some(&log)),
                Action::Fenced => self.fenced = true,
            }
        }
    }

    pub fn recruit(&mut self, want: usize, avoid: &[Name], committed: u64) {
        let node = |n: &Name| Node {
            name: n.clone(),
            domains: vec![n.to_string()],
            recovery_domains: vec![],
            alive: true,
            logs: 0,
        };
        let nodes: Vec<Node> = self.clients.keys().map(node).collect();
        let present: Vec<Name> = self.links.iter().map(|l| l.node.clone()).collect();
        let volume = VolumeId(u128::from(self.serial));
        for placed in placement::place(volume, &node(&name("owner")), &nodes, &present, avoid, want) {
            self.serial += 1;
            let (sender, progress) = watch::channel(Progress::default());
            let start = Start {
                volume: V,
                epoch: Epoch(self.epoch),
                serial: self.serial,
                committed: Lsn(committed),
                accepted: Lsn(self.last),
            };
            let replica = self.clients[&placed.node].replica(start, self.journal.clone(), Arc::new(sender));
            self.links.push(Linked { log: None, node: placed.node, replica, progress });
        }
    }
}
