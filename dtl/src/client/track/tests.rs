use super::*;
use common::{Epoch, VolumeId};

fn track(accepted: u64) -> Track {
    Track::new(Start {
        volume: VolumeId(7),
        epoch: Epoch(5),
        serial: 1,
        committed: Lsn(0),
        accepted: Lsn(accepted),
    })
}

fn info(base: u64, last: u64) -> LogInfo {
    LogInfo {
        epoch: Epoch(5),
        incarnation: Incarnation(1),
        base: Lsn(base),
        last: Lsn(last),
        flushed: Lsn(base),
        sealed: false,
        suspect: false,
        damaged: false,
    }
}

fn live(n: u64) -> Track {
    let mut t = track(0);
    t.hello(1);
    t.opened(&info(0, 0), 1 << 20);
    for lsn in 1..=n {
        assert!(t.accept(Lsn(lsn), 100));
        t.sent(Lsn(lsn), 100);
    }
    t
}

/// 21 to 50 found no room and were dropped; then the backend has all of them, and the trim makes room. Nothing is left to be
/// sent, so nothing but the resume itself can say that nothing is owed.
#[test]
fn what_was_dropped_and_trimmed_is_owed_no_more() {
    let mut t = live(50);
    t.confirmed(Lsn(20));
    t.stalled();
    t.want_trim(Lsn(50));
    assert_eq!(t.control(), Some(Control::Trim(Lsn(50))));
    t.resumed(Lsn(50));
    let progress = t.progress();
    assert_eq!((progress.state, progress.confirmed), (LinkState::Live, Lsn(50)));
    // A service that claims more than was given out is not believed.
    let mut t = live(10);
    t.stalled();
    t.resumed(Lsn(1 << 40));
    assert_eq!(t.progress().confirmed, Lsn(10));
    assert!(t.accept(Lsn(11), 100));
}

/// The client skips what the backend has, and the connection breaks before the trim that says so has arrived.
#[test]
fn a_trim_that_was_lost_with_the_connection_does_not_lose_the_log() {
    let mut t = live(100);
    t.confirmed(Lsn(100));
    t.closed();
    for lsn in 101..=200 {
        assert!(!t.accept(Lsn(lsn), 100));
    }
    t.hello(2);
    t.opened(&info(0, 100), 1 << 20);
    assert_eq!(t.skip(Lsn(180)), Some(Control::Trim(Lsn(180))));
    assert_eq!(t.progress().confirmed, Lsn(180));
    t.closed();
    t.hello(3);
    t.opened(&info(0, 100), 1 << 20);
    assert_eq!(t.progress().state, LinkState::CatchingUp);
    assert_eq!(t.wants_chunk(0), Some(Lsn(101)));
    // One that confirmed what the backend does not have, and has it no more, is not to be trusted.
    let mut t = live(100);
    t.confirmed(Lsn(100));
    t.closed();
    t.hello(2);
    t.opened(&info(0, 99), 1 << 20);
    assert_eq!(t.progress().state, LinkState::Lost);
}
