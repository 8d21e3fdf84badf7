//! Who uses the registry: workers, holders of leases, watchers. They retry as the real client does, with the same
//! request id, and tell the judge what they asked and heard.

use super::world::{CLIENTS, Packet, World};
use crate::machine::{Answer, Assert, Command, LeaseId, Op, Range, RequestId};
use crate::node::request::{Request, Response};
use bytes::Bytes;
use common::ErrorKind;
use std::collections::BTreeMap;

const MS: u64 = 1000;
/// Few keys, so that they meet.
const KEYS: u64 = 6;
/// After this many tries a client gives up, and does not know what became of it.
const TRIES: u32 = 25;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Worker,
    Holder,
    Watcher,
}

struct Pending {
    token: u64,
    request: Request,
    invoked: u64,
    tries: u32,
}

struct Client {
    role: Role,
    target: u64,
    session: Option<u64>,
    sequence: u64,
    tokens: u64,
    pending: Option<Pending>,
    wake_at: u64,
    /// Revisions that were seen, for asserts.
    seen: BTreeMap<String, u64>,
    lease: Option<(LeaseId, u64)>,
    watch_from: u64,
    /// Its history ended behind what there is: it reads all, and goes on from there.
    behind: bool,
    finished: bool,
    /// Microseconds that it will do something else.
    pause: u64,
}

pub(super) struct Clients {
    clients: BTreeMap<u64, Client>,
    /// Leases that were granted, for those who want to take over.
    leases: Vec<LeaseId>,
}

impl Clients {
    pub fn new(world: &mut World) -> Self {
        let mut clients = BTreeMap::new();
        for n in 0..world.plan.clients {
            let role = match n {
                0 => Role::Watcher,
                1 => Role::Holder,
                _ => Role::Worker,
            };
            let client = Client {
                role,
                target: 1,
                session: None,
                sequence: 0,
                tokens: 0,
                pending: None,
                wake_at: 0,
                seen: BTreeMap::new(),
                lease: None,
                watch_from: 1,
                behind: false,
                finished: false,
                pause: 0,
            };
            clients.insert(CLIENTS + n, client);
            let at = world.random.u64(..100 * MS);
            world.wake_client(CLIENTS + n, at);
        }
        Self { clients, leases: Vec::new() }
    }

    pub fn are_done(&self) -> bool {
        self.clients.values().all(|c| c.finished)
    }

    pub fn told(&self) -> String {
        let told = self.clients.iter().filter(|(_, c)| !c.finished).map(|(id, c)| {
            let asks = c.pending.as_ref().map(|p| format!("{:?}, {} tries", p.request, p.tries));
            format!("client {id} ({:?}) asks {asks:?} of {}", c.role, c.target)
        });
        told.collect::<Vec<_>>().join("; ")
    }

    pub fn wake(&mut self, world: &mut World, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.finished || (world.now < client.wake_at && !(world.quiet && client.pending.is_none())) {
            return;
        }
        match &mut client.pending {
            Some(pending) if pending.tries >= TRIES && !world.quiet => {
                // Its number is not used again: whatever still travels of it is refused, or was executed.
                client.pending = None;
                client.sequence += 1;
            }
            Some(pending) => {
                pending.tries += 1;
                if pending.tries > 1 {
                    world.tally.retried += 1;
                }
                let (token, request) = (pending.token, pending.request.encode());
                if pending.tries.is_multiple_of(3) {
                    let ids = world.node_ids();
                    client.target = ids[world.random.usize(..ids.len())];
                }
                world.net.send(world.now, id, client.target, Packet::Request { token, request });
            }
            None if world.quiet && client.session.is_some() => {
                client.finished = true;
                return;
            }
            None => {
                let request = client.next(world, &self.leases);
                client.tokens += 1;
                let token = (id << 32) | client.tokens;
                world.judge.asked(token, request.clone(), world.now);
                client.pending = Some(Pending { token, request, invoked: world.now, tries: 0 });
                client.sleep(world, id, 0);
                return;
            }
        }
        let patience = world.random.u64(60 * MS..600 * MS);
        client.sleep(world, id, patience);
    }

    pub fn answer(
        &mut self,
        world: &mut World,
        id: u64,
        token: u64,
        response: Response,
    ) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        let Some(pending) = client.pending.take_if(|p| p.token == token) else { return Ok(()) };
        let retry = match &response {
            Response::NotLeader { leader } => {
                let ids = world.node_ids();
                let any = ids[world.random.usize(..ids.len())];
                client.target = leader.as_ref().map_or(any, |(id, _)| *id);
                true
            }
            Response::Lost | Response::Failed { kind: ErrorKind::Unavailable, .. } => true,
            _ => false,
        };
        if retry {
            client.pending = Some(pending);
            let pause = world.random.u64(5 * MS..60 * MS);
            client.sleep(world, id, pause);
            return Ok(());
        }
        world.tally.answered += 1;
        world.judge.answered(token, world.now, response.clone());
        let granted = client.heard(world, &pending, &response).map_err(|why| {
            format!("client {id} asked {:?} and was answered {response:?}: {why}", pending.request)
        })?;
        self.leases.extend(granted);
        let pause = world.random.u64(MS..80 * MS) + std::mem::take(&mut client.pause);
        client.sleep(world, id, pause);
        Ok(())
    }
}

fn key(n: u64) -> String {
    format!("k{n}")
}

impl Client {
    fn sleep(&mut self, world: &mut World, id: u64, pause: u64) {
        self.wake_at = world.now + pause;
        world.wake_client(id, self.wake_at);
    }

    fn request_id(&self) -> RequestId {
        RequestId {
            session: self.session.unwrap_or(0),
            sequence: self.sequence,
            // One at a time.
            answered_below: self.sequence,
        }
    }

    fn value(&self) -> Bytes {
        let name = format!("{}:{}:", self.session.unwrap_or(0), self.sequence);
        name.repeat(1 + (self.sequence % 7) as usize * 4).into_bytes().into()
    }

    fn put(&self, key: String, lease: Option<LeaseId>) -> Op {
        Op::Put { key, value: self.value(), lease }
    }

    fn next(&mut self, world: &mut World, leases: &[LeaseId]) -> Request {
        if self.session.is_none() {
            return Request::Command(Command::OpenSession);
        }
        match self.role {
            Role::Watcher if self.behind => Request::Range(Range::prefix("k")),
            Role::Watcher => Request::Watch { prefix: "k".into(), from: self.watch_from, wait_ms: 300 },
            Role::Holder => self.next_of_a_holder(world),
            Role::Worker => self.next_of_a_worker(world, leases),
        }
    }

    fn txn(&mut self, asserts: Vec<Assert>, ops: Vec<Op>) -> Request {
        Request::Command(Command::Txn { request: self.request_id(), asserts, ops })
    }

    fn next_of_a_worker(&mut self, world: &mut World, leases: &[LeaseId]) -> Request {
        let random = &mut world.random;
        let one = key(random.u64(..KEYS));
        match random.u8(..20) {
            0..7 => {
                let ops = (0..random.u64(1..4)).map(|_| self.put(key(random.u64(..KEYS)), None)).collect();
                self.txn(vec![], ops)
            }
            7..12 => {
                let assert = match self.seen.get(&one) {
                    Some(revision) => Assert::Revision(one.clone(), *revision),
                    None => Assert::Absent(one.clone()),
                };
                let other = key(random.u64(..KEYS));
                self.txn(vec![assert], vec![self.put(one, None), self.put(other, None)])
            }
            12 => self.txn(vec![], vec![Op::Delete { key: one }]),
            13..16 => Request::Get { key: one },
            16 | 17 => Request::Range(Range::prefix("k")),
            _ => match leases.last() {
                Some(last) => {
                    let lease = if random.bool() { *last } else { leases[random.usize(..leases.len())] };
                    let takeover = format!("owner/{}", lease.0);
                    self.txn(vec![Assert::LeaseExpired(lease)], vec![self.put(takeover, None)])
                }
                None => Request::Get { key: one },
            },
        }
    }

    fn next_of_a_holder(&mut self, world: &mut World) -> Request {
        let random = &mut world.random;
        let Some((lease, ttl_ms)) = self.lease else {
            let ttl_ms = random.u64(300..1500);
            return Request::Command(Command::Grant { request: self.request_id(), ttl_ms });
        };
        match random.u16(..400) {
            0 => {
                self.lease = None;
                Request::Command(Command::Revoke { request: self.request_id(), lease })
            }
            1..40 => self.txn(
                vec![Assert::LeaseLive(lease)],
                vec![self.put(format!("held/{}", lease.0), Some(lease))],
            ),
            40..44 => {
                // It does something else for longer than its lease lives, and then asks again.
                self.pause = ttl_ms * 3 * MS;
                Request::Get { key: key(0) }
            }
            _ => Request::KeepAlive { lease },
        }
    }

    /// Leases that were granted.
    fn heard(
        &mut self,
        world: &mut World,
        pending: &Pending,
        response: &Response,
    ) -> Result<Vec<LeaseId>, String> {
        let mut granted = Vec::new();
        match (&pending.request, response) {
            (Request::Command(command), Response::Answer(answer)) => {
                if command.request().is_some() {
                    self.sequence += 1;
                }
                match (command, answer) {
                    (_, Answer::Session(session)) => {
                        self.session = Some(*session);
                        self.sequence = 1;
                    }
                    (Command::Grant { ttl_ms, .. }, Answer::Granted { lease }) => {
                        self.lease = Some((*lease, *ttl_ms));
                        granted.push(*lease);
                        world.judge.believes(*lease, believed(pending.invoked, *ttl_ms));
                    }
                    (Command::Txn { asserts, ops, .. }, Answer::Done { revision }) => {
                        for op in ops {
                            match op {
                                Op::Put { key, .. } => self.seen.insert(key.clone(), *revision),
                                Op::Delete { key } => self.seen.remove(key),
                            };
                        }
                        let takes_over = asserts.iter().any(|a| matches!(a, Assert::LeaseExpired(_)));
                        world.tally.takeovers += u64::from(takes_over);
                    }
                    (Command::Txn { asserts, .. }, Answer::Refused { kind: ErrorKind::Conflict, .. }) => {
                        if let Some(Assert::Revision(key, _) | Assert::Absent(key)) = asserts.first() {
                            self.seen.remove(key);
                        }
                        if asserts.iter().any(|a| matches!(a, Assert::LeaseLive(_))) {
                            self.lease = None;
                        }
                    }
                    (Command::Revoke { .. }, Answer::Done { .. } | Answer::Refused { .. }) => {}
                    _ => return Err("that is no answer".into()),
                }
            }
            (Request::Get { key }, Response::Pair { pair, .. }) => {
                world.tally.reads += 1;
                match pair {
                    Some(pair) => self.seen.insert(key.clone(), pair.revision),
                    None => self.seen.remove(key),
                };
            }
            (Request::Range(_), Response::Page(page)) => {
                world.tally.reads += 1;
                for pair in &page.pairs {
                    self.seen.insert(pair.key.clone(), pair.revision);
                }
                if self.behind {
                    self.behind = false;
                    self.watch_from = page.revision + 1;
                }
            }
            (Request::KeepAlive { lease }, Response::Alive { ttl_ms }) => {
                world.judge.believes(*lease, believed(pending.invoked, *ttl_ms));
            }
            (Request::KeepAlive { .. }, Response::Failed { kind: ErrorKind::Fenced, .. }) => {
                self.lease = None
            }
            (Request::Watch { .. }, Response::Events { events, next }) => {
                world.tally.watched += events.len() as u64;
                self.watch_from = *next;
            }
            (Request::Watch { from, .. }, Response::Compacted { oldest }) if oldest > from => {
                self.behind = true
            }
            _ => return Err("that is no answer to it".into()),
        }
        Ok(granted)
    }
}

/// Until when a holder believes in its lease: from the sending, with a margin for clocks that differ.
fn believed(sent: u64, ttl_ms: u64) -> u64 {
    sent + ttl_ms * MS * 85 / 100
}
