//! The OSDs as this process sees them: who is fast, who fails, who is full. All stores of the process share one view, so what
//! one request learns the next one knows.

use crate::alba::placement::Candidate;
use common::osd::{Call, Osd, OsdId, OsdState};
use common::{Clock, Error, ErrorKind};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A first failure keeps an OSD out of the way for so long; each further one for twice as long.
const AVOID: Duration = Duration::from_secs(1);
const AVOID_MOST: Duration = Duration::from_secs(60);
/// An OSD that had no space is not asked to take anything for so long.
const FULL: Duration = Duration::from_secs(10);
/// An OSD that gave wrong bytes is the last to be asked for so long.
const LIED: Duration = Duration::from_secs(600);
/// Before anything is known of an OSD.
const UNKNOWN: Duration = Duration::from_millis(20);
/// A read is not hedged earlier, nor later.
const HEDGE_LEAST: Duration = Duration::from_millis(2);
const HEDGE_MOST: Duration = Duration::from_millis(500);
/// So much slower than the others is too slow to be given anything.
const SLOW_FACTOR: u32 = 8;
const SLOW_LEAST: Duration = Duration::from_millis(100);
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of a request to an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, after so long.
    Answered(Duration),
    /// It did not, or with an error that is its own fault.
    Failed,
    /// It was not heard of for so long, and somebody else was asked.
    Late(Duration),
    /// It has no space.
    Full,
    /// What it answered was not what is there.
    Lied,
}

#[derive(Debug, Clone, Default)]
struct Health {
    /// Smoothed latency and how far off it is, as TCP does it.
    latency: Option<(Duration, Duration)>,
    failures: u32,
    avoid_until: Duration,
    full_until: Duration,
}

struct Member {
    osd: Arc<dyn Osd>,
    node: Arc<str>,
    domain: Arc<str>,
    /// Whether it may be given anything: the registry's word.
    takes: bool,
    /// Free bytes; nothing until it was asked.
    free: u64,
    read_only: bool,
    health: Health,
}

/// The OSDs of a backend.
pub struct Osds {
    clock: Arc<dyn Clock>,
    members: Mutex<BTreeMap<OsdId, Member>>,
    changed: watch::Sender<u64>,
}

impl Osds {
    /// No OSDs yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, members: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Adds an OSD, or replaces what is known of it. `takes`: it may be given fragments.
    pub fn set(&self, id: OsdId, osd: Arc<dyn Osd>, node: &str, domain: &str, takes: bool) {
        let (node, domain) = (node.into(), domain.into());
        let member =
            Member { osd, node, domain, takes, free: 0, read_only: false, health: Health::default() };
        self.members.lock().insert(id, member);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Forgets an OSD.
    pub fn remove(&self, id: OsdId) {
        self.members.lock().remove(&id);
    }

    /// All of them.
    pub fn all(&self) -> Vec<(OsdId, Arc<dyn Osd>)> {
        self.members.lock().iter().map(|(id, m)| (*id, m.osd.clone())).collect()
    }

    /// The OSD of that id.
    pub fn get(&self, id: OsdId) -> Option<Arc<dyn Osd>> {
        self.members.lock().get(&id).map(|m| m.osd.clone())
    }

    /// Asks every OSD how it is, all at a time. To be called at the start and then now and again; requests tell the rest.
    pub async fn refresh(&self) {
        let ask = |(id, osd): (OsdId, Arc<dyn Osd>)| async move {
            let began = self.clock.now();
            let call = Call::client(STATUS_TIMEOUT);
            tokio::select! {
                status = osd.status(call) => (id, Some(status), began),
                () = self.clock.sleep(STATUS_TIMEOUT) => (id, None, began),
            }
        };
        for (id, status, began) in futures::future::join_all(self.all().into_iter().map(ask)).await {
            match status {
                Some(Ok(status)) => {
                    if let Some(member) = self.members.lock().get_mut(&id) {
                        member.free = if status.space.full { 0 } else { status.space.free };
                        member.read_only = matches!(status.state, OsdState::ReadOnly(_));
                        if !status.space.full {
                            member.health.full_until = Duration::ZERO;
                        }
                    }
                    self.report(id, Outcome::Answered(self.clock.now() - began));
                }
                _ => self.report(id, Outcome::Failed),
            }
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Says what became of a request.
    pub fn report(&self, id: OsdId, outcome: Outcome) {
        let now = self.clock.now();
        let mut members = self.members.lock();
        let Some(member) = members.get_mut(&id) else { return };
        let health = &mut member.health;
        match outcome {
            Outcome::Answered(took) => {
                health.learn(took);
                let back = health.failures > 0;
                (health.failures, health.avoid_until) = (0, Duration::ZERO);
                drop(members);
                if back {
                    self.changed.send_modify(|n| *n += 1);
                }
            }
            // It takes longer than that, nobody knows how much.
            Outcome::Late(took) => {
                let (mean, off) = health.latency.unwrap_or((took, took / 2));
                health.latency = Some(((mean + took) / 2, off));
            }
            Outcome::Failed => {
                health.failures += 1;
                let long = AVOID.saturating_mul(1 << (health.failures - 1).min(10));
                health.avoid_until = now + long.min(AVOID_MOST);
            }
            Outcome::Full => health.full_until = now + FULL,
            Outcome::Lied => health.avoid_until = now + LIED,
        }
    }

    /// Says it by the error of a request.
    pub fn report_error(&self, id: OsdId, error: &Error) {
        match error.kind {
            ErrorKind::NoSpace => self.report(id, Outcome::Full),
            // An assert that did not hold is an answer.
            ErrorKind::Conflict | ErrorKind::Invalid => {}
            ErrorKind::Corrupt => {}
            _ => self.report(id, Outcome::Failed),
        }
    }

    /// Whether it is better to ask another one.
    pub fn avoided(&self, id: OsdId) -> bool {
        let now = self.clock.now();
        let members = self.members.lock();
        let usual = usual(&members);
        members.get(&id).is_none_or(|m| m.health.avoid_until > now || m.health.is_slow(usual))
    }

    /// Whom to ask first: not those that fail, then by latency.
    pub fn sort_key(&self, id: OsdId) -> (bool, Duration) {
        let now = self.clock.now();
        let members = self.members.lock();
        members.get(&id).map_or((true, Duration::MAX), |m| {
            (m.health.avoid_until > now, m.health.latency.map_or(UNKNOWN, |(mean, _)| mean))
        })
    }

    /// For how long an answer is waited for before others are asked too.
    pub fn hedge_after(&self, id: OsdId) -> Duration {
        let latency = self.members.lock().get(&id).and_then(|m| m.health.latency);
        latency.map_or(UNKNOWN, |(mean, off)| mean + 4 * off).clamp(HEDGE_LEAST, HEDGE_MOST)
    }

    /// All OSDs, with a weight of zero those that may be given nothing now: what they have counts for their node.
    pub fn candidates(&self) -> Vec<Candidate> {
        let now = self.clock.now();
        let members = self.members.lock();
        let usual = usual(&members);
        let able =
            |m: &Member| m.takes && !m.read_only && m.health.avoid_until <= now && m.health.full_until <= now;
        let candidate = |(id, m): (&OsdId, &Member)| Candidate {
            osd: *id,
            node: m.node.clone(),
            domain: m.domain.clone(),
            weight: match (able(m), m.health.is_slow(usual)) {
                (false, _) => 0,
                // A slow one is taken when there is no other.
                (true, true) => m.free.min(1),
                (true, false) => m.free,
            },
        };
        members.iter().map(candidate).collect()
    }

    /// Waits until something changed that may make more possible.
    pub async fn changed(&self) {
        // The sender is this.
        let _ = self.changed.subscribe().changed().await;
    }

    /// What a person should know when too few OSDs can be given anything.
    pub fn told(&self) -> String {
        let now = self.clock.now();
        let members = self.members.lock();
        let count = |of: &dyn Fn(&Member) -> bool| members.values().filter(|m| of(m)).count();
        let away = count(&|m| m.takes && m.health.avoid_until > now);
        let full =
            count(&|m| m.takes && m.health.avoid_until <= now && (m.health.full_until > now || m.free == 0));
        let closed = count(&|m| !m.takes || m.read_only);
        format!("of {} OSDs {away} do not answer, {full} are full, {closed} take nothing", members.len())
    }
}

/// The latency that is usual: that of the one in the middle.
fn usual(members: &BTreeMap<OsdId, Member>) -> Duration {
    let mut known: Vec<Duration> =
        members.values().filter_map(|m| m.health.latency.map(|(mean, _)| mean)).collect();
    known.sort_unstable();
    known.get(known.len() / 2).copied().unwrap_or(UNKNOWN)
}

impl Health {
    fn learn(&mut self, took: Duration) {
        let (mean, off) = self.latency.unwrap_or((took, took / 2));
        let off = (off * 3 + took.abs_diff(mean)) / 4;
        self.latency = Some(((mean * 7 + took) / 8, off));
    }

    fn is_slow(&self, usual: Duration) -> bool {
        self.latency.is_some_and(|(mean, _)| mean > SLOW_LEAST && mean > usual * SLOW_FACTOR)
    }
}
