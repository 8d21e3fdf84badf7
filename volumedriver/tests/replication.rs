//! The tail of a volume at other routers: what is acknowledged waits for it, and a new owner finds it there.
#![allow(missing_docs)]

mod routers;
mod world;

use common::{BlockDevice, Clock, ErrorKind, Lsn};
use dtl::{Mode, OnFailure, Status};
use routers::*;
use std::time::Duration;
use world::{CLUSTER, cluster, value};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_peer_is_found_and_named_by_itself() {
    let routers = Routers::new(1, Mode::Sync, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    assert!(!v.status().replication.unwrap().in_sync, "it begins alone, and says so");
    routers.in_sync(&v).await;
    let registered = routers.registered();
    assert_eq!((registered.config.status, registered.config.peers.len()), (Status::InSync, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_survives_the_loss_of_the_owners_machine() {
    let routers = Routers::new(2, Mode::Sync, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    v.write(0, cluster(1), false).await.unwrap();
    routers.in_sync(&v).await;
    // Nothing is sealed for an hour: all that there is of these is in the journal and at the peer.
    for addr in 0..64 {
        v.write(addr * CLUSTER, cluster(addr as u8 + 2), false).await.unwrap();
    }
    v.discard(3 * CLUSTER, CLUSTER, false).await.unwrap();
    routers.lose(0);
    let peer = routers.peer();
    let other = (1..3).find(|n| *n != peer).unwrap();
    let v = routers.open(other).await.unwrap();
    for addr in 0..64 {
        let wanted = if addr == 3 { 0 } else { addr as u8 + 2 };
        assert_eq!(value(&v, addr).await, wanted, "cluster {addr}");
    }
    assert!(!routers.registered().tails.is_empty(), "the tail is remembered until the backend has it");
    v.drain(SECOND * 60).await.unwrap();
    routers.clock.sleep(SECOND * 2).await;
    assert!(routers.registered().tails.is_empty(), "it has it");
}

#[tokio::test(start_paused = true)]
async fn the_second_crash_does_not_forget_the_first_tail() {
    let routers = Routers::new(3, Mode::Sync, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    routers.in_sync(&v).await;
    for addr in 0..16 {
        v.write(addr * CLUSTER, cluster(1), false).await.unwrap();
    }
    let first = routers.peer();
    routers.lose(0);
    let second = (1..3).find(|n| *n != first).unwrap();
    let v = routers.open(second).await.unwrap();
    v.write(0, cluster(2), true).await.unwrap();
    routers.in_sync(&v).await;
    v.write(CLUSTER, cluster(3), false).await.unwrap();
    routers.lose(second);
    // Router 0 is back with an empty data directory; the first tail is where it was.
    routers.boot(0).await;
    let v = routers.open(first).await.unwrap();
    assert_eq!((value(&v, 0).await, value(&v, 1).await), (2, 3));
    for addr in 2..16 {
        assert_eq!(value(&v, addr).await, 1, "cluster {addr}");
    }
}

#[tokio::test(start_paused = true)]
async fn by_force_the_first_tail_is_taken_where_the_second_owner_is_lost() {
    let routers = Routers::new(10, Mode::Sync, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    routers.in_sync(&v).await;
    v.write(0, cluster(1), false).await.unwrap();
    let first = routers.peer();
    routers.lose(0);
    let second = (1..3).find(|n| *n != first).unwrap();
    let v = routers.open(second).await.unwrap();
    // It finds no peer for its own epoch, says so, and is lost as well.
    routers.freeze(first);
    v.write(CLUSTER, cluster(2), false).await.unwrap();
    routers.lose(second);
    routers.thaw();
    let refused = routers.open(first).await.map(drop).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Denied, "{refused}");
    let v = routers.force(first).await.unwrap();
    assert_eq!(value(&v, 0).await, 1, "the first owner's tail is where it was");
    assert_eq!(value(&v, 1).await, 0, "the second owner's is lost");
    assert!(routers.lost());
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_wait_for_the_peer_and_then_for_the_registry() {
    let routers = Routers::new(4, Mode::Sync, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    routers.in_sync(&v).await;
    routers.freeze_all_but(0);
    routers.registry_is_away();
    let write = v.write(0, cluster(9), false);
    tokio::pin!(write);
    let waited = tokio::time::timeout(SECOND * 10, &mut write).await;
    assert!(waited.is_err(), "nobody may acknowledge it: neither the peer nor the registry has answered");
    assert_eq!(value(&v, 0).await, 0, "and nobody may read it");
    routers.registry_is_back();
    write.await.unwrap();
    let registered = routers.registered();
    assert_ne!(registered.config.status, Status::InSync, "alone, and it says so: {registered:?}");
    assert!(!v.status().replication.unwrap().in_sync);
    routers.thaw();
    routers.in_sync(&v).await;
}

#[tokio::test(start_paused = true)]
async fn who_blocks_waits_for_a_peer() {
    let routers = Routers::new(5, Mode::Sync, OnFailure::Block).await;
    let v = routers.open(0).await.unwrap();
    routers.in_sync(&v).await;
    routers.freeze_all_but(0);
    let write = v.write(0, cluster(9), false);
    tokio::pin!(write);
    assert!(tokio::time::timeout(SECOND * 60, &mut write).await.is_err());
    routers.thaw();
    write.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_over_what_may_lack_something_but_by_force() {
    let routers = Routers::new(6, Mode::Sync, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    v.write(0, cluster(1), false).await.unwrap();
    v.drain(SECOND * 60).await.unwrap();
    routers.in_sync(&v).await;
    v.write(CLUSTER, cluster(2), false).await.unwrap();
    let peer = routers.peer();
    let other = (1..3).find(|n| *n != peer).unwrap();
    routers.lose(0);
    routers.lose(peer);
    let refused = routers.open(other).await.map(drop).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Denied, "{refused}");
    assert!(refused.message().contains("orphaned") && refused.message().contains("unreachable"), "{refused}");
    // Its memory is gone, so what comes back is another log.
    routers.boot(peer).await;
    let refused = routers.open(other).await.map(drop).unwrap_err();
    assert!(refused.message().contains("gone"), "{refused}");
    let v = routers.force(other).await.unwrap();
    assert_eq!((value(&v, 0).await, value(&v, 1).await), (1, 0));
    assert!(routers.lost(), "the loss is on record");
}

#[tokio::test(start_paused = true)]
async fn the_owner_itself_comes_back_with_what_nobody_else_has() {
    let routers = Routers::new(7, Mode::None, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    v.write(0, cluster(5), false).await.unwrap();
    routers.kill(0);
    let refused = routers.open(1).await.map(drop).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Denied, "{refused}");
    routers.boot(0).await;
    let v = routers.open(0).await.unwrap();
    assert_eq!(value(&v, 0).await, 5);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_taken_from_acknowledges_nothing() {
    let routers = Routers::new(8, Mode::Sync, OnFailure::Degrade).await;
    let zombie = routers.open(0).await.unwrap();
    routers.in_sync(&zombie).await;
    zombie.write(0, cluster(1), false).await.unwrap();
    let other = (1..3).find(|n| *n != routers.peer()).unwrap();
    let v = routers.open(other).await.unwrap();
    assert_eq!(value(&v, 0).await, 1);
    let refused = tokio::time::timeout(SECOND * 60, zombie.write(0, cluster(2), false)).await;
    assert_eq!(refused.expect("it stops by itself").unwrap_err().kind, ErrorKind::Fenced);
    assert_eq!(value(&v, 0).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_owner_says_how_much_of_each_epoch_it_has() {
    let routers = Routers::new(11, Mode::Async, OnFailure::Degrade).await;
    let v = routers.open(0).await.unwrap();
    routers.in_sync(&v).await;
    let first = v.status().epoch;
    assert_eq!(v.log_write(0, cluster(1), false).await.unwrap(), Lsn(1));
    assert_eq!(v.log_zeroes(CLUSTER, 2 * CLUSTER, false, false).await.unwrap(), Lsn(2));
    assert_eq!(v.log_flush().await.unwrap(), Lsn(2));
    // Of this one the peer hears nothing any more.
    let peer = routers.peer();
    routers.freeze(peer);
    assert_eq!(v.log_write(0, cluster(2), false).await.unwrap(), Lsn(3));
    routers.lose(0);
    routers.thaw();
    let other = (1..3).find(|n| *n != peer).unwrap();
    let v = routers.open(other).await.unwrap();
    let kept = v.recovered(first).unwrap();
    assert!(kept == Lsn(2) || kept == Lsn(3), "what was flushed at least: {kept}");
    assert_eq!(value(&v, 0).await, kept.0 as u8 - 1);
    let second = v.status().epoch;
    assert_eq!(v.recovered(second), None, "all of its own");
    // Whoever missed an epoch has the smaller of both.
    routers.in_sync(&v).await;
    v.log_write(0, cluster(9), true).await.unwrap();
    routers.lose(other);
    let v = routers.open(peer).await.unwrap();
    assert_eq!(v.recovered(first), Some(kept));
    assert_eq!(v.recovered(second), Some(kept.next()));
}

#[tokio::test(start_paused = true)]
async fn in_mode_async_flushes_wait_and_writes_do_not() {
    let routers = Routers::new(9, Mode::Async, OnFailure::Block).await;
    let v = routers.open(0).await.unwrap();
    routers.in_sync(&v).await;
    v.write(0, cluster(1), true).await.unwrap();
    routers.freeze_all_but(0);
    v.write(CLUSTER, cluster(2), false).await.unwrap();
    assert_eq!(value(&v, 1).await, 2);
    assert!(tokio::time::timeout(SECOND * 10, v.flush()).await.is_err());
    let peer = routers.peer();
    routers.thaw();
    routers.lose(0);
    let other = (1..3).find(|n| *n != peer).unwrap();
    let v = routers.open(other).await.unwrap();
    assert_eq!(value(&v, 0).await, 1, "what was flushed is there");
}
