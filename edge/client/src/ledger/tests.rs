use super::*;
use crate::wire::{Outcome, Reply};
use bytes::Bytes;

const GRANT: Credit = Credit { requests: 4, bytes: 1 << 20 };

fn granted(epoch: u64, recovered: Recovered) -> Granted {
    let geometry = Geometry {
        size: 1 << 30,
        min_block: 512,
        preferred_block: 4096,
        max_payload: 1 << 20,
        read_only: false,
    };
    Granted {
        geometry,
        epoch: Epoch(epoch),
        recovered,
        known: false,
        in_sync: true,
        disk_read_only: false,
        forwarded: false,
        credit: GRANT,
    }
}

fn write(offset: u64, byte: u8) -> Op {
    Op::Write { offset, data: Bytes::from(vec![byte; 512]), fua: false }
}

struct Bench {
    ledger: Ledger,
    sent: VecDeque<Request>,
    lsn: u64,
}

impl Bench {
    fn new(mode: Mode, keep: usize) -> Self {
        let mut bench = Bench { ledger: Ledger::new(mode, keep, false), sent: VecDeque::new(), lsn: 0 };
        bench.attached(1, Recovered::All);
        bench
    }

    fn attached(&mut self, epoch: u64, recovered: Recovered) {
        self.ledger.away();
        self.sent.clear();
        self.ledger.attached(&granted(epoch, recovered)).unwrap();
        self.dispatch();
    }

    fn dispatch(&mut self) {
        self.ledger.dispatch(|request| self.sent.push_back(request));
    }

    fn ask(&mut self, op: Op) -> u64 {
        let sequence = self.ledger.submit(op, None);
        self.dispatch();
        sequence
    }

    /// The owner answers the oldest request that it has, at the next place of its log.
    fn answer_with(&mut self, lsn: u64, outcome: Outcome) -> Op {
        let request = self.sent.pop_front().expect("something was sent");
        let epoch = self.ledger.epoch();
        let grant = request.op.cost();
        let reply = Reply { sequence: request.sequence, epoch, lsn: Lsn(lsn), in_sync: true, grant, outcome };
        self.ledger.reply(reply, Duration::ZERO).unwrap();
        self.dispatch();
        request.op
    }

    fn answer(&mut self) -> Op {
        let flush = matches!(self.sent.front().map(|r| &r.op), Some(Op::Flush));
        self.lsn += u64::from(!flush);
        self.answer_with(self.lsn, Outcome::Done)
    }

    fn result(&mut self, sequence: u64) -> Option<Result<Outcome>> {
        self.ledger.poll(sequence, Waker::noop())
    }

    fn done(&mut self, op: Op) {
        let sequence = self.ask(op);
        self.answer();
        self.result(sequence).unwrap().unwrap();
    }

    fn ops(&self) -> Vec<Op> {
        self.sent.iter().map(|r| r.op.clone()).collect()
    }
}

#[test]
fn credit_bounds_what_is_under_way() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    (0..6).for_each(|n| _ = bench.ask(write(n * 512, 1)));
    assert_eq!(bench.sent.len(), 4);
    bench.answer();
    assert_eq!(bench.sent.len(), 4);
    let read = bench.ask(Op::Read { offset: 0, len: 1 << 20 });
    (0..6).for_each(|_| _ = bench.answer());
    assert!(bench.result(read).is_some());
}

#[test]
fn a_new_owner_is_sent_what_it_lacks_in_the_order_of_the_log_before_anything_else() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    bench.done(write(0, 1));
    bench.done(Op::Flush);
    bench.done(write(512, 2));
    bench.done(write(1024, 3));
    bench.done(write(1024, 4));
    let under_way = bench.ask(write(0, 5));
    let reading = bench.ask(Op::Read { offset: 0, len: 512 });
    // The owner has the log up to 2: the second write, not the third and the fourth.
    bench.attached(2, Recovered::UpTo(Lsn(2)));
    assert_eq!(bench.ops(), [write(1024, 3)], "what overlaps it waits, and so does what is new");
    bench.lsn = 2;
    bench.answer();
    assert_eq!(bench.ops(), [write(1024, 4)]);
    bench.answer();
    assert_eq!(bench.ops(), [write(0, 5), Op::Read { offset: 0, len: 512 }]);
    bench.answer();
    assert!(bench.result(under_way).is_some() && bench.result(reading).is_none());
    assert_eq!(bench.ledger.counters().replayed, 4);
}

#[test]
fn a_replay_that_is_cut_short_goes_on_where_it_was() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    (1..=3).for_each(|byte| bench.done(write(0, byte)));
    bench.attached(2, Recovered::UpTo(Lsn(0)));
    bench.lsn = 0;
    bench.answer();
    assert_eq!(bench.ops(), [write(0, 2)]);
    // The link broke: the owner has the first one, and may have the second.
    bench.attached(2, Recovered::All);
    assert_eq!(bench.ops(), [write(0, 2)]);
    // Another owner has nothing: the first one is lacking again.
    bench.attached(3, Recovered::UpTo(Lsn(0)));
    bench.lsn = 0;
    assert_eq!([bench.answer(), bench.answer(), bench.answer()], [write(0, 1), write(0, 2), write(0, 3)]);
    assert!(bench.sent.is_empty() && bench.ledger.is_live());
}

#[test]
fn an_owner_that_can_only_vouch_for_flushes_is_sent_all_that_no_flush_covered() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    bench.done(write(0, 1));
    bench.done(Op::Flush);
    bench.done(write(512, 2));
    bench.attached(9, Recovered::Flushed);
    bench.lsn = 0;
    assert_eq!(bench.answer(), write(512, 2));
    // Its log begins anew; what is kept of it is told apart from what was flushed before.
    bench.attached(10, Recovered::Flushed);
    assert_eq!(bench.ops(), [write(512, 2)]);
}

#[test]
fn what_is_kept_is_bounded_by_flushes_of_its_own() {
    let mut bench = Bench::new(Mode::Exclusive, 4 * (512 + KEPT_COST));
    bench.done(write(0, 1));
    bench.done(write(0, 2));
    assert_eq!(bench.ops(), [Op::Flush], "at the half");
    bench.ask(write(0, 3));
    bench.ask(write(0, 4));
    let fifth = bench.ask(write(0, 5));
    assert_eq!(bench.ops().len(), 3, "the fifth would be too much");
    bench.answer();
    assert_eq!(bench.ops().len(), 3);
    (0..3).for_each(|_| _ = bench.answer());
    assert!(bench.result(fifth).is_some());
    assert!(bench.ledger.counters().own_flushes >= 1);
}

#[test]
fn one_request_that_is_larger_than_what_may_be_kept_is_sent_alone() {
    let mut bench = Bench::new(Mode::Exclusive, 1000);
    bench.done(Op::Discard { offset: 0, len: 512, fua: false });
    let large = bench.ask(Op::Write { offset: 0, data: vec![1; 4096].into(), fua: false });
    assert_eq!(bench.answer(), Op::Flush);
    bench.answer();
    assert!(bench.result(large).is_some());
}

#[test]
fn a_lost_tail_fails_flushes_and_nothing_else() {
    let mut bench = Bench::new(Mode::Shared, 1 << 20);
    bench.done(write(0, 1));
    let waiting = bench.ask(Op::Flush);
    bench.attached(2, Recovered::UpTo(Lsn(0)));
    assert!(matches!(bench.result(waiting), Some(Err(_))));
    bench.lsn = 0;
    bench.done(write(0, 2));
    let later = bench.ask(Op::Flush);
    assert!(matches!(bench.result(later), Some(Err(_))));
}

#[test]
fn an_owner_that_lacks_what_a_flush_covered_is_not_believed_again() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    bench.done(write(0, 1));
    bench.done(Op::Flush);
    bench.attached(2, Recovered::UpTo(Lsn(0)));
    let flush = bench.ask(Op::Flush);
    assert!(matches!(bench.result(flush), Some(Err(_))));
}

#[test]
fn an_older_owner_is_not_attached_to_and_a_reply_of_another_epoch_ends_the_channel() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    bench.attached(3, Recovered::UpTo(Lsn(0)));
    assert!(bench.ledger.attached(&granted(2, Recovered::All)).is_err());
    bench.attached(3, Recovered::All);
    let waiting = bench.ask(write(0, 1));
    let request = bench.sent.pop_front().unwrap();
    let reply = Reply {
        sequence: request.sequence,
        epoch: Epoch(2),
        lsn: Lsn(9),
        in_sync: true,
        grant: request.op.cost(),
        outcome: Outcome::Done,
    };
    assert!(bench.ledger.reply(reply, Duration::ZERO).is_err());
    assert!(bench.result(waiting).is_none());
}

#[test]
fn what_can_not_be_done_just_now_is_asked_again_until_its_deadline() {
    let mut bench = Bench::new(Mode::Exclusive, 1 << 20);
    let sequence = bench.ledger.submit(write(0, 1), Some(Duration::from_secs(1)));
    bench.dispatch();
    bench.answer_with(0, Outcome::Failed(Error::unavailable("not now")));
    assert!(bench.sent.is_empty() && bench.result(sequence).is_none());
    assert!(bench.ledger.tick(PAUSE));
    bench.dispatch();
    assert_eq!(bench.ops(), [write(0, 1)]);
    bench.ledger.tick(Duration::from_secs(1));
    assert!(matches!(bench.result(sequence), Some(Err(e)) if e.kind == common::ErrorKind::Unavailable));
    // Its answer comes late and only gives back the credit.
    bench.answer();
    (0..4).for_each(|n| _ = bench.ask(write(n * 512, 1)));
    assert_eq!(bench.sent.len(), 4);
}
