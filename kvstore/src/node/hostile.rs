//! Histories and messages that broke it, or would have.

use super::bench::Bench;
use super::message::PeerMessage;
use super::request::{Change, Request, Response};
use crate::machine::{Answer, Configuration};
use common::ErrorKind;
use common::sim::SimDisk;
use raft::eraftpb::{Entry, Message, MessageType};

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

/// 1 leads, 2 heard nothing of the last transaction, and 3 has confirmed it.
fn confirmed_by_one_and_three() -> Bench {
    let mut bench = Bench::of(&[1, 2, 3]);
    bench.elect(1);
    let session = bench.session(1);
    bench.alone.insert(2);
    let answer = bench.answer(1, Bench::put(session, 1, "acknowledged"));
    assert!(matches!(answer, Some(Response::Answer(Answer::Done { .. }))), "{answer:?}");
    bench
}

#[test]
fn who_lost_its_disk_does_not_vote_away_what_it_confirmed() {
    let mut bench = confirmed_by_one_and_three();
    bench.kill(1);
    bench.blank(3);
    bench.alone.clear();
    bench.tick(&[2, 3], 100);
    assert!(!bench.leads(2), "2 leads by the vote of a member that has forgotten what it confirmed");
    bench.start(1).unwrap();
    bench.tick(&[1, 2, 3], 200);
    assert!(bench.leads(1) || bench.leads(2));
    // Its state would be given to it; it sees there that it was somebody once.
    let why = bench.stopped.get(&3).expect("3 goes on as if nothing had happened");
    assert!(why.kind == ErrorKind::Fenced && why.message().contains("new id"), "{why}");
    for id in [1, 2] {
        assert!(bench.member(id).machine().value("acknowledged").is_some());
    }
}

#[test]
fn a_new_member_becomes_a_voter_and_a_removed_one_stays_out() {
    let mut bench = Bench::of(&[1, 2, 3]);
    bench.elect(1);
    bench.blank(4);
    let add = || Request::Change(vec![Change::AddLearner { member: 4, address: "four:1".into() }]);
    assert_eq!(bench.answer(1, add()), Some(Response::Done));
    bench.tick(&[1, 2, 3, 4], 20);
    assert_eq!(bench.answer(1, Request::Change(vec![Change::Promote { member: 4 }])), Some(Response::Done));
    bench.tick(&[1, 2, 3, 4], 20);
    assert!(bench.member(4).machine().meta().configuration.voters.contains(&4));
    bench.alone.insert(4);
    assert_eq!(bench.answer(1, Request::Change(vec![Change::Remove { member: 4 }])), Some(Response::Done));
    // Its folder, or a new one: what the old one voted for and confirmed can't be told from what the new one does.
    let again = bench.answer(1, add());
    assert!(
        matches!(&again, Some(Response::Failed { kind: ErrorKind::Conflict, message }) if message.contains("removed")),
        "{again:?}"
    );
    // Also after a restart, and for who gets the state as a snapshot.
    bench.kill(1);
    bench.start(1).unwrap();
    assert!(bench.member(1).machine().is_gone(4) && !bench.member(1).machine().is_gone(3));
    assert!(bench.stopped.is_empty(), "{:?}", bench.stopped);
}

#[test]
fn a_removed_member_that_starts_again_knows_it() {
    let mut bench = Bench::of(&[1, 2, 3]);
    bench.elect(1);
    assert_eq!(bench.answer(1, Request::Change(vec![Change::Remove { member: 3 }])), Some(Response::Done));
    bench.tick(&[1, 2, 3], 5);
    assert!(bench.member(3).is_removed());
    bench.kill(3);
    bench.start(3).unwrap();
    assert!(bench.member(3).is_removed());
    assert!(!bench.member(2).is_removed());
}

#[test]
fn a_log_that_is_missing_is_not_taken_for_a_new_one() {
    let mut bench = confirmed_by_one_and_three();
    bench.kill(3);
    // The disk of the log is not mounted.
    let disk = std::mem::replace(&mut bench.seats.get_mut(&3).unwrap().disk, SimDisk::new());
    let error = bench.start(3).unwrap_err();
    assert!(error.kind == ErrorKind::Corrupt && error.message().contains("not in its folder"), "{error}");
    bench.seats.get_mut(&3).unwrap().disk = disk;
    bench.start(3).unwrap();
}

#[test]
fn who_leads_without_a_vote_steps_down() {
    let mut bench = Bench::of(&[1, 2]);
    bench.elect(2);
    // 2 takes the vote of 1 away, and hands over to it before 1 knows that this is decided.
    bench.lost =
        Some(Box::new(|m| m.from == 2 && m.get_msg_type() == MessageType::MsgAppend && m.entries.is_empty()));
    bench.ask(2, Request::Change(vec![Change::Demote { member: 1 }]));
    bench.ask(2, Request::Transfer { to: 1 });
    bench.run();
    bench.lost = None;
    bench.tick(&[1], 3);
    let voters = bench.member(1).machine().meta().configuration.voters.clone();
    assert_eq!(voters, [2], "the history did not happen");
    // From here on 2 can be elected by itself alone: 1 must not answer anything as a leader.
    assert!(!bench.leads(1), "1 leads and has no vote");
}

#[test]
fn no_message_of_a_stranger_makes_a_member_panic() {
    use MessageType as M;
    let mut bench = Bench::of(&[1, 2, 3]);
    bench.elect(1);
    let session = bench.session(1);
    bench.answer(1, Bench::put(session, 1, "a"));
    let term = bench.member(1).term();
    let far = [0, 1, 5, 1 << 40, u64::MAX - 1, u64::MAX];
    let kinds = [
        M::MsgAppend,
        M::MsgAppendResponse,
        M::MsgHeartbeat,
        M::MsgHeartbeatResponse,
        M::MsgRequestVote,
        M::MsgRequestVoteResponse,
        M::MsgRequestPreVote,
        M::MsgRequestPreVoteResponse,
        M::MsgTimeoutNow,
        M::MsgSnapshot,
        M::MsgHup,
        M::MsgBeat,
        M::MsgPropose,
        M::MsgUnreachable,
        M::MsgSnapStatus,
        M::MsgCheckQuorum,
        M::MsgTransferLeader,
        M::MsgReadIndex,
        M::MsgReadIndexResp,
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let mut refused = 0;
    for round in 0..20_000u32 {
        let to = random.u64(1..=3);
        let from = random.u64(1..=5);
        let kind = kinds[random.usize(..kinds.len())];
        let number = |random: &mut fastrand::Rng| match random.u8(..3) {
            0 => far[random.usize(..far.len())],
            _ => random.u64(..8),
        };
        let mut m = message(kind, from, to, term);
        // A term that can be would only make it a follower in that one.
        m.term = if random.u8(..4) == 0 { 0 } else { term };
        (m.index, m.log_term) = (number(&mut random), number(&mut random));
        (m.commit, m.commit_term) = (number(&mut random), random.u64(..2) * term);
        (m.reject, m.reject_hint) = (random.bool(), number(&mut random));
        if random.u8(..8) == 0 {
            m.request_snapshot = number(&mut random);
        }
        if random.u8(..4) == 0 {
            let index = if random.bool() { m.index.wrapping_add(1) } else { number(&mut random) };
            // What it leads to is a log that its leader does not have; here only that nobody dies of it.
            m.set_entries(vec![Entry { index, term: term + 1, ..Entry::default() }].into());
        }
        let outcome = bench.member(to).peer(from, PeerMessage::Raft(m.clone()));
        refused += u32::from(outcome.is_err());
        bench.run();
        assert!(bench.stopped.is_empty(), "round {round}: {m:?}: {:?}", bench.stopped);
    }
    assert!(refused > 5000, "{refused}");
    bench.tick(&[1, 2, 3], 100);
    assert!([1, 2, 3].iter().any(|id| bench.leads(*id)));
}

#[test]
fn who_comes_from_the_far_future_does_not_use_up_the_terms() {
    let mut bench = Bench::of(&[1, 2, 3]);
    bench.elect(1);
    let mut m = message(MessageType::MsgRequestVote, 3, 2, 1 << 61);
    m.index = 1 << 40;
    m.context = "CampaignTransfer".into();
    assert_eq!(bench.member(2).peer(3, PeerMessage::Raft(m)).unwrap_err().kind, ErrorKind::Invalid);
    assert!(bench.member(2).term() < 100);
}

#[test]
fn a_membership_that_can_not_be_is_no_membership() {
    let sound = |voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64], leave: bool| {
        let all = [voters, learners, outgoing, next].map(<[u64]>::to_vec);
        let [voters, learners, voters_outgoing, learners_next] = all;
        Configuration { voters, learners, voters_outgoing, learners_next, auto_leave: leave }.is_sound()
    };
    assert!(sound(&[], &[], &[], &[], false));
    assert!(sound(&[1, 2], &[3], &[], &[], false));
    assert!(sound(&[1, 2], &[4], &[2, 3], &[3], true));
    for bad in [
        sound(&[1, 1], &[], &[], &[], false),
        sound(&[2, 1], &[], &[], &[], false),
        sound(&[0, 1], &[], &[], &[], false),
        sound(&[1], &[1], &[], &[], false),
        sound(&[1], &[], &[], &[], true),
        sound(&[], &[1], &[], &[], false),
        sound(&[1], &[2], &[2], &[], false),
        sound(&[1], &[], &[1], &[2], false),
    ] {
        assert!(!bad);
    }
}
