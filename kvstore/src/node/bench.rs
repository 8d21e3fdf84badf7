//! A few members on simulated disks whose messages are delivered by hand: for histories that a seed would not find soon.

use super::Settings;
use super::core::{Effect, Member, Token};
use super::message::PeerMessage;
use super::opening;
use super::request::{Request, Response};
use crate::log::{Log, LogSettings};
use crate::machine::layout::{Configuration, Meta};
use crate::machine::staging::Staging;
use crate::machine::{Answer, Assert, Command, Limits, Machine, Op, RequestId};
use common::sim::{SimDisk, SimTable};
use common::table::Table as _;
use common::{Error, ErrorKind, Result};
use futures::executor::block_on;
use raft::eraftpb::Message;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const GROUP: u128 = 0xbe;

pub(super) struct Seat {
    pub disk: SimDisk,
    pub table: Arc<SimTable>,
    life: Option<(Member, Log)>,
}

type Filter = Box<dyn Fn(&Message) -> bool>;

#[derive(Default)]
pub(super) struct Bench {
    pub seats: BTreeMap<u64, Seat>,
    /// Members whose messages do not come through, neither way.
    pub alone: BTreeSet<u64>,
    /// Messages of raft for which this is true are lost.
    pub lost: Option<Filter>,
    pub replies: BTreeMap<Token, Response>,
    /// Members that gave up, and why.
    pub stopped: BTreeMap<u64, Error>,
    pub refused: Vec<Error>,
    queue: VecDeque<(u64, u64, bytes::Bytes)>,
    tokens: Token,
}

impl Bench {
    pub fn of(voters: &[u64]) -> Self {
        let mut bench = Self::default();
        for id in voters {
            let table = Arc::new(SimTable::new());
            let staging = Staging::begin(table.clone(), 1).unwrap();
            let configuration = Configuration { voters: voters.to_vec(), ..Configuration::default() };
            let meta =
                Meta { index: 1, term: 1, history_from: 1, installed: 1, configuration, ..Meta::default() };
            staging.set_meta(&meta).unwrap();
            staging.activate(GROUP, *id).unwrap();
            bench.seats.insert(*id, Seat { disk: SimDisk::new(), table, life: None });
            bench.start(*id).unwrap();
        }
        bench
    }

    /// Somebody whose folder is empty.
    pub fn blank(&mut self, id: u64) {
        let table = Arc::new(SimTable::new());
        Machine::create(table.clone(), GROUP, id).unwrap();
        self.seats.insert(id, Seat { disk: SimDisk::new(), table, life: None });
        self.start(id).unwrap();
    }

    pub fn start(&mut self, id: u64) -> Result<()> {
        let seat = self.seats.get_mut(&id).unwrap();
        seat.life = None;
        seat.table = Arc::new(seat.table.successor());
        let disk = Arc::new(seat.disk.process());
        let settings = LogSettings { segment_bytes: 64 << 10, record_bytes: 1 << 10 };
        let opened = block_on(opening::open(seat.table.clone(), Limits::default(), disk, settings));
        let (machine, log, recovered) = opened?;
        let settings = Settings { seed: id, compact_bytes: 12 << 10, ..Settings::default() };
        seat.life = Some((Member::new(settings, machine, recovered)?, log));
        self.run();
        Ok(())
    }

    pub fn kill(&mut self, id: u64) {
        self.seats.get_mut(&id).unwrap().life = None;
    }

    pub fn member(&mut self, id: u64) -> &mut Member {
        &mut self.seats.get_mut(&id).unwrap().life.as_mut().expect("it lives").0
    }

    pub fn leads(&self, id: u64) -> bool {
        self.seats[&id].life.as_ref().is_some_and(|(member, _)| member.leads())
    }

    fn flush(&mut self, id: u64) {
        loop {
            let Some(seat) = self.seats.get_mut(&id) else { return };
            let Some((member, log)) = &mut seat.life else { return };
            let effects = member.flush().unwrap();
            let mut persisted = false;
            for effect in effects {
                match effect {
                    Effect::Persist { number, batch } => {
                        block_on(log.append(&[batch])).unwrap();
                        member.persisted(number);
                        persisted = true;
                    }
                    Effect::Compact { floor } => {
                        seat.table.checkpoint().unwrap();
                        block_on(log.compact(floor)).unwrap();
                    }
                    Effect::Send { to, message } => {
                        let lost = match (&self.lost, &message) {
                            (Some(lost), PeerMessage::Raft(message)) => lost(message),
                            _ => false,
                        };
                        if !lost {
                            self.queue.push_back((id, to, message.encode().unwrap()));
                        }
                    }
                    Effect::Reply { token, response } => {
                        self.replies.insert(token, response);
                    }
                }
            }
            if !persisted {
                return;
            }
        }
    }

    /// Delivers everything that is under way, and what follows from it.
    pub fn run(&mut self) {
        for id in self.seats.keys().copied().collect::<Vec<_>>() {
            self.flush(id);
        }
        while let Some((from, to, bytes)) = self.queue.pop_front() {
            if self.alone.contains(&from) || self.alone.contains(&to) {
                continue;
            }
            let Some((member, _)) = self.seats.get_mut(&to).and_then(|s| s.life.as_mut()) else { continue };
            if let Err(error) = member.peer(from, PeerMessage::decode(bytes).unwrap()) {
                if error.kind == ErrorKind::Invalid {
                    self.refused.push(error);
                } else {
                    self.stopped.insert(to, error);
                    self.kill(to);
                }
            }
            self.flush(to);
        }
    }

    pub fn tick(&mut self, ids: &[u64], times: usize) {
        for _ in 0..times {
            for id in ids {
                if let Some((member, _)) = &mut self.seats.get_mut(id).unwrap().life {
                    member.tick();
                }
            }
            self.run();
        }
    }

    /// Lets the clock of `id` alone go on until it leads.
    pub fn elect(&mut self, id: u64) {
        for _ in 0..200 {
            if self.leads(id) {
                return;
            }
            self.tick(&[id], 1);
        }
        panic!("member {id} does not come to lead");
    }

    pub fn ask(&mut self, id: u64, request: Request) -> Token {
        self.tokens += 1;
        let token = self.tokens;
        self.member(id).request(token, request).unwrap();
        token
    }

    /// Asks, lets everything happen, and says what was answered.
    pub fn answer(&mut self, id: u64, request: Request) -> Option<Response> {
        let token = self.ask(id, request);
        self.run();
        self.replies.get(&token).cloned()
    }

    pub fn session(&mut self, id: u64) -> u64 {
        match self.answer(id, Request::Command(Command::OpenSession)) {
            Some(Response::Answer(Answer::Session(session))) => session,
            other => panic!("{other:?}"),
        }
    }

    pub fn put(session: u64, sequence: u64, key: &str) -> Request {
        let request = RequestId { session, sequence, answered_below: sequence };
        let op = Op::Put { key: key.into(), value: "value".into(), lease: None };
        Request::Command(Command::Txn { request, asserts: Vec::<Assert>::new(), ops: vec![op] })
    }
}
