use super::client::{Client, info, meta};
use super::*;
use crate::nbd::proto::{chunk, flag, opt};
use common::{Error, ErrorKind};
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;

const READ: u16 = 0;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7 + i / 251)) as u8 | 1).collect()
}

async fn clients(world: &World) -> [Client<tokio::net::TcpStream>; 3] {
    [
        Client::open_simple(world.address, "p/a").await,
        Client::open(world.address, "p/a", false).await,
        Client::open(world.address, "p/a", true).await,
    ]
}

#[tokio::test]
async fn what_was_written_is_read_in_every_shape_of_reply_and_size() {
    let world = World::new().await;
    for (n, c) in clients(&world).await.iter_mut().enumerate() {
        for length in [512, 1024, 4096, 8192, 32 << 10, 33 << 10, 100 << 10, 1 << 20, 32 << 20, 40 << 20] {
            let data = pattern(n as u64, length);
            assert_eq!(c.write(0, 4096, &data).await, 0, "write of {length}");
            assert!(c.read(4096, length).await.unwrap() == data, "read of {length}, client {n}");
        }
        assert_eq!(c.write(0, 0, &[]).await, 0, "nothing is written in no time");
    }
}

#[tokio::test]
async fn odd_reads_are_widened_and_odd_writes_refused() {
    let world = World::new().await;
    for c in &mut clients(&world).await {
        let data = pattern(3, 8192);
        c.write(0, 0, &data).await;
        for (at, length) in [(1, 1), (511, 2), (3, 5000), (512, 7)] {
            assert_eq!(c.read(at, length).await.unwrap(), data[at as usize..at as usize + length]);
        }
        assert_eq!(c.read(64 * MIB - 1, 1).await.unwrap(), [0]);
        assert_eq!(c.write(0, 1, &[1; 512]).await, EINVAL);
        assert_eq!(c.write(0, 0, &[1; 100]).await, EINVAL);
        assert_eq!(c.call(0, TRIM, 1, 512).await, EINVAL);
        assert_eq!(c.read(0, 8192).await.unwrap(), data, "a refused write changes nothing");
    }
}

#[tokio::test]
async fn zeroes_and_holes_are_told_apart_by_block_status() {
    let world = World::new().await;
    for extended in [false, true] {
        let mut c = Client::open(world.address, "p/a", extended).await;
        assert_eq!(c.call(0, TRIM, 0, 64 * MIB).await, 0);
        assert_eq!(c.status(0, 0, 64 * MIB).await, [(64 * MIB, 3)]);
        c.write(0, 65536, &[1; 65536]).await;
        assert_eq!(c.call(flag::NO_HOLE | flag::FAST_ZERO, ZEROES, 131072, 65536).await, 0);
        let all = [(65536, 3), (65536, 0), (65536, 2), (64 * MIB - 3 * 65536, 3)];
        assert_eq!(c.status(0, 0, 64 * MIB).await, all);
        assert_eq!(c.status(flag::REQ_ONE, 0, 64 * MIB).await, all[..1]);
        assert_eq!(c.status(0, 65536 + 512, 1024).await, [(1024, 0)], "never beyond the request");
        assert_eq!(c.call(0, ZEROES, 65536, 131072).await, 0);
        assert_eq!(c.status(0, 0, MIB).await, [(MIB, 3)], "without NO_HOLE it is a hole");
        assert_eq!(c.read(65536, 4096).await.unwrap(), [0; 4096]);
        assert_eq!(c.call(0, STATUS, 0, 0).await, EINVAL);
    }
    assert_eq!(Client::open_simple(world.address, "p/a").await.call(0, STATUS, 0, 4096).await, EINVAL);
}

#[tokio::test]
async fn a_read_of_zeroes_is_sent_as_a_hole() {
    let world = World::new().await;
    let mut c = Client::open(world.address, "p/a", false).await;
    c.send(flag::DF, READ, 1, 0, 1 << 20).await;
    let reply = c.reply(0).await;
    assert_eq!((reply.kind, reply.body.len(), reply.done), (chunk::OFFSET_HOLE, 12, true));
    c.write(0, 0, &[&[0; 4095][..], &[1]].concat()).await;
    c.send(0, READ, 1, 0, 4096).await;
    assert_eq!(c.reply(0).await.kind, chunk::OFFSET_DATA, "its last byte is not zero");
}

#[tokio::test]
async fn flush_fua_cache_and_trim_reach_the_device() {
    let world = World::new().await;
    for (n, c) in clients(&world).await.iter_mut().enumerate() {
        assert_eq!(c.call(0, FLUSH, 0, 0).await, 0);
        assert_eq!(world.a.flushes.load(Ordering::SeqCst), n + 1);
        assert_eq!(c.write(0, 0, &[1; 512]).await, 0);
        assert_eq!(world.a.fuas.load(Ordering::SeqCst), 3 * n);
        assert_eq!(c.write(flag::FUA, 0, &[1; 512]).await, 0);
        assert_eq!(c.call(flag::FUA, TRIM, 0, 512).await, 0);
        assert_eq!(c.call(flag::FUA, ZEROES, 0, 512).await, 0);
        assert_eq!(world.a.fuas.load(Ordering::SeqCst), 3 * n + 3);
        assert_eq!(c.call(0, CACHE, 0, MIB).await, 0);
    }
}

#[tokio::test]
async fn requests_that_cannot_be_right_get_their_errno_and_the_connection_lives() {
    let world = World::new().await;
    for c in &mut clients(&world).await {
        let end = 64 * MIB;
        assert_eq!(c.read(end, 512).await, Err(EINVAL));
        assert_eq!(c.read(end - 512, 1024).await, Err(EINVAL));
        assert_eq!(c.read(u64::MAX - 511, 512).await, Err(EINVAL), "the sum does not fit");
        assert_eq!(c.write(0, end, &[1; 512]).await, ENOSPC);
        assert_eq!(c.write(0, u64::MAX - 511, &[1; 512]).await, ENOSPC);
        assert_eq!(c.call(0, ZEROES, end - 512, 1024).await, ENOSPC);
        assert_eq!(c.call(0, TRIM, end, 512).await, EINVAL);
        assert_eq!(c.call(0, CACHE, end, 512).await, EINVAL);
        assert_eq!(c.call(0, 8, 0, 0).await, EINVAL, "RESIZE is not known");
        assert_eq!(c.call(0, 4711, 0, 0).await, EINVAL);
        assert_eq!(c.call(flag::REQ_ONE, FLUSH, 0, 0).await, EINVAL);
        assert_eq!(c.call(0x8000, TRIM, 0, 512).await, EINVAL);
        assert_eq!(c.write(flag::DF, 0, &[1; 2048]).await, EINVAL, "its payload is skipped");
        assert_eq!(c.read(0, (64 << 20) + 512).await, Err(EINVAL));
        if c.structured {
            c.send(flag::DF, READ, 6, 0, (64 << 20) + 512).await;
            assert_eq!(c.reply(0).await.error, EOVERFLOW);
        } else {
            assert_eq!(c.call(flag::DF, READ, 0, 512).await, EINVAL);
        }
        assert_eq!(c.write(0, 0, &vec![1; 65 << 20]).await, EINVAL, "an oversize write is skipped");
        assert_eq!(c.read(0, 512).await.unwrap().len(), 512);
    }
}

#[tokio::test]
async fn an_error_of_the_device_comes_with_its_message_and_hurts_nobody_else() {
    let world = World::new().await;
    *world.a.broken.lock() = Some((8192, Error::new(ErrorKind::Corrupt, "sco e1/8 is damaged")));
    let mut c = Client::open(world.address, "p/a", false).await;
    c.send(0, READ, 1, 8192, 4096).await;
    let reply = c.reply(0).await;
    assert_eq!((reply.kind, reply.error, reply.done), (chunk::ERROR, EIO, true));
    assert_eq!(String::from_utf8(reply.body).unwrap(), "sco e1/8 is damaged");
    assert_eq!(c.write(0, 8192, &[1; 512]).await, EIO);
    assert_eq!(c.write(0, 0, &[1; 512]).await, 0);
    assert_eq!(Client::open_simple(world.address, "p/a").await.read(8192, 512).await, Err(EIO));
    assert_eq!(world.metric("storagerouter_edge_errors_total{kind=\"corrupt\"}"), 3.0);
}

#[tokio::test]
async fn a_read_only_export_refuses_every_change() {
    let world = World::new().await;
    let mut c = Client::open(world.address, "p/ro", false).await;
    assert_eq!(c.write(0, 0, &[1; 512]).await, EPERM);
    assert_eq!(c.call(0, TRIM, 0, 512).await, EPERM);
    assert_eq!(c.call(0, ZEROES, 0, 512).await, EPERM);
    assert_eq!(c.read(0, 512).await.unwrap(), [0; 512]);
    assert_eq!(c.call(0, FLUSH, 0, 0).await, 0);
}

#[tokio::test]
async fn extended_requests_have_64_bits_and_refuse_a_payload_where_none_belongs() {
    let world = World::new().await;
    world.a.grow(1 << 40);
    let mut c = Client::open(world.address, "p/a", true).await;
    assert_eq!(c.status(0, 0, 1 << 40).await, [(1 << 40, 3)]);
    assert_eq!(c.call(0, TRIM, 0, 1 << 39).await, 0);
    let mut bytes = c.header(flag::PAYLOAD_LEN, READ, 3, 0, 512);
    bytes.extend([0xee; 512]);
    c.stream.write_all(&bytes).await.unwrap();
    let reply = c.reply(0).await;
    assert_eq!((reply.cookie, reply.error), (3, EINVAL));
    assert_eq!(c.call(0, FLUSH, 0, 0).await, 0, "the payload was skipped");
}

#[tokio::test]
async fn a_disk_that_grew_is_served_to_its_new_end() {
    let world = World::new().await;
    let mut c = Client::open(world.address, "p/a", false).await;
    assert_eq!(c.write(0, 64 * MIB, &[1; 512]).await, ENOSPC);
    world.a.grow(65 * MIB);
    assert_eq!(c.write(0, 64 * MIB, &[1; 512]).await, 0);
}

#[tokio::test]
async fn many_requests_at_once_are_each_answered_once() {
    let world = World::new().await;
    for c in &mut clients(&world).await {
        let mut bytes = Vec::new();
        for i in 0..1000u64 {
            let flags = if c.extended { flag::PAYLOAD_LEN } else { 0 };
            bytes.extend(c.header(flags, 1, i, i * 4096, 4096));
            bytes.extend(pattern(i, 4096));
        }
        let (mut reader, mut writer) = tokio::io::split(std::mem::replace(
            &mut c.stream,
            tokio::net::TcpStream::connect(world.address).await.unwrap(),
        ));
        let send = async { writer.write_all(&bytes).await.unwrap() };
        let (extended, structured) = (c.extended, c.structured);
        let receive = async {
            let joined = tokio::io::join(&mut reader, tokio::io::sink());
            let mut c = Client { stream: joined, extended, structured };
            let mut cookies = Vec::new();
            for _ in 0..1000 {
                let reply = c.reply(0).await;
                assert_eq!(reply.error, 0);
                cookies.push(reply.cookie);
            }
            cookies.sort_unstable();
            assert!(cookies.into_iter().eq(0..1000));
        };
        tokio::join!(send, receive);
        let mut check = Client::open_simple(world.address, "p/a").await;
        for i in [0, 1, 499, 999] {
            assert_eq!(check.read(i * 4096, 4096).await.unwrap(), pattern(i, 4096));
        }
    }
}

#[tokio::test]
async fn two_clients_see_each_other_and_disks_stay_apart() {
    let world = World::new().await;
    let mut one = Client::open(world.address, "p/a", false).await;
    let mut two = Client::open(world.address, "p/a", true).await;
    let mut other = Client::open(world.address, "p/b", false).await;
    for i in 0..50u64 {
        assert_eq!(one.write(0, i * 4096, &pattern(i, 4096)).await, 0);
        assert_eq!(two.read(i * 4096, 4096).await.unwrap(), pattern(i, 4096));
    }
    assert_eq!(other.read(0, 50 * 4096).await.unwrap(), vec![0; 50 * 4096]);
}

#[tokio::test]
async fn disconnect_finishes_what_is_in_flight_and_gives_the_disk_back() {
    let world = World::new().await;
    let held = Arc::strong_count(&world.a);
    let gate = world.a.gate.write().await;
    let mut c = Client::open_simple(world.address, "p/a").await;
    assert!(Arc::strong_count(&world.a) > held);
    c.send_write(0, 1, 0, &[5; 4096]).await;
    c.send(0, DISC, 2, 0, 0).await;
    eventually(|| world.a.waiting.lock().0 > 0).await;
    drop(gate);
    assert_eq!(c.reply(0).await.cookie, 1);
    assert!(c.rest().await.is_empty());
    eventually(|| Arc::strong_count(&world.a) == held).await;
}

#[tokio::test]
async fn a_client_that_vanishes_gives_the_disk_back_though_its_requests_hang() {
    let world = World::new().await;
    let held = Arc::strong_count(&world.a);
    let _gate = world.a.gate.write().await;
    let mut c = Client::open_simple(world.address, "p/a").await;
    c.send_write(0, 1, 0, &[5; 4096]).await;
    eventually(|| world.a.waiting.lock().0 > 0).await;
    drop(c);
    eventually(|| Arc::strong_count(&world.a) == held).await;
}

#[tokio::test]
async fn payload_in_memory_stays_within_its_bound() {
    let settings = Settings { max_inflight_bytes: MIB, ..Settings::default() };
    let world = World::with(settings).await;
    for command in [READ, 1] {
        *world.a.waiting.lock() = (0, 0);
        let gate = world.a.gate.write().await;
        let c = Client::open_simple(world.address, "p/a").await;
        let mut bytes = Vec::new();
        for i in 0..40u64 {
            bytes.extend(c.header(0, command, i, i * 131072, 131072));
            if command == 1 {
                bytes.extend(vec![3; 131072]);
            }
        }
        let stream = c.stream;
        let (mut reader, mut writer) = stream.into_split();
        let sender = tokio::spawn(async move {
            writer.write_all(&bytes).await.unwrap();
            writer
        });
        eventually(|| world.a.waiting.lock().0 == MIB).await;
        // Time for the server to take more, were it willing.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.a.waiting.lock().1, MIB);
        drop(gate);
        let reply = if command == READ { 16 + 131072 } else { 16 };
        let mut replies = vec![0; 40 * reply];
        let all = tokio::io::AsyncReadExt::read_exact(&mut reader, &mut replies);
        super::client::within(all).await.unwrap();
        assert!(world.a.waiting.lock().1 <= MIB);
        // One request larger than the bound is served alone.
        drop(sender.await.unwrap());
        let mut c = Client::open_simple(world.address, "p/a").await;
        assert_eq!(c.write(0, 0, &vec![1; 2 << 20]).await, 0);
    }
}

#[tokio::test]
async fn replies_that_nobody_reads_stop_the_intake() {
    let settings = Settings { max_inflight_bytes: MIB, ..Settings::default() };
    let world = World::with(settings).await;
    let mut c = Client::open_simple(world.address, "p/a").await;
    let request = c.header(0, READ, 1, 0, 1 << 20);
    for _ in 0..64 {
        c.stream.write_all(&request).await.unwrap();
    }
    let served = || world.metric("storagerouter_edge_requests_total{command=\"read\"}");
    eventually(|| served() >= 1.0).await;
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
    assert!(
        served() < 32.0,
        "socket buffers take a few; {} were read for a client that reads none",
        served()
    );
    for _ in 0..64 {
        assert_eq!(c.reply(1 << 20).await.error, 0);
    }
}

#[tokio::test]
async fn requests_in_flight_stay_within_their_bound() {
    let settings = Settings { max_inflight_requests: 3, ..Settings::default() };
    let world = World::with(settings).await;
    let gate = world.a.gate.write().await;
    let mut c = Client::open_simple(world.address, "p/a").await;
    for i in 0..10 {
        c.send_write(0, i, i * 512, &[1; 512]).await;
    }
    eventually(|| world.a.waiting.lock().0 == 3 * 512).await;
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.a.waiting.lock().1, 3 * 512);
    drop(gate);
    for _ in 0..10 {
        assert_eq!(c.reply(0).await.error, 0);
    }
}

#[tokio::test]
async fn stopping_answers_what_is_in_flight_then_closes_and_accepts_nobody() {
    let world = World::new().await;
    let gate = world.a.gate.write().await;
    let mut c = Client::open_simple(world.address, "p/a").await;
    let mut idle = Client::open_simple(world.address, "p/a").await;
    let mut greeted = Client::connect(world.address).await;
    c.send_write(0, 1, 0, &[5; 4096]).await;
    eventually(|| world.a.waiting.lock().0 > 0).await;
    world.stop.send(true).unwrap();
    assert!(idle.rest().await.is_empty());
    assert!(greeted.rest().await.is_empty());
    drop(gate);
    assert_eq!(c.reply(0).await.cookie, 1);
    assert!(c.rest().await.is_empty());
    super::client::within(world.served).await.unwrap();
    assert!(tokio::net::TcpStream::connect(world.address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_ever() {
    let world = World::new().await;
    let _gate = world.a.gate.write().await;
    let mut c = Client::open_simple(world.address, "p/a").await;
    c.send_write(0, 1, 0, &[5; 4096]).await;
    eventually(|| world.a.waiting.lock().0 > 0).await;
    world.stop.send(true).unwrap();
    world.served.await.unwrap();
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn what_differs_from_snapshots_is_told_beside_what_is_allocated() {
    let world = World::new().await;
    let (first, by_id) =
        ("x-storagerouter:diff:first", "x-storagerouter:diff:00000000000000000000000000000008");
    for extended in [false, true] {
        let mut c = Client::connect(world.address).await;
        c.structured().await;
        if extended {
            c.extended().await;
        }
        let queries =
            [first, "base:allocation", "x-storagerouter:diff:nope", by_id, first, "x-storagerouter:"];
        let replies = c.option(opt::SET_META_CONTEXT, &meta("p/a", &queries)).await;
        let bodies: Vec<_> = replies.iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
        let expected =
            [format!("\0\0\0\x01{first}"), "\0\0\0\x02base:allocation".into(), format!("\0\0\0\x03{by_id}")];
        assert_eq!(bodies[..3], expected, "an unknown snapshot is not offered, nothing is offered twice");
        assert_eq!(replies.len(), 4);
        c.option(opt::GO, &info("p/a", &[])).await;
        assert_eq!(c.call(0, TRIM, 0, 64 * MIB).await, 0);
        c.write(0, 65536, &[0; 65536]).await;
        for (flags, runs) in [(0, 3), (flag::REQ_ONE, 1)] {
            let all = c.statuses(flags, 0, MIB).await;
            assert_eq!(all.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(all[0].1, [(65536, 0), (65536, 1), (MIB - 131072, 0)][..runs]);
            assert_eq!(all[1].1, [(65536, 3), (65536, 2), (MIB - 131072, 3)][..runs]);
            assert_eq!(all[2].1, all[0].1);
        }
        assert_eq!(c.read(65536, 4096).await.unwrap(), [0; 4096]);
    }
}

#[tokio::test]
async fn snapshots_are_listed_and_one_that_goes_fails_the_request_alone() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    c.structured().await;
    for (queries, found) in [
        (&[][..], 4),
        (&["x-storagerouter:"], 3),
        (&["x-storagerouter:diff:", "base:allocation"], 4),
        (&["x-storagerouter:diff:second"], 1),
        (&["x-storagerouter:diff:sec", "x-storagerouter:other"], 0),
    ] {
        let replies = c.option(opt::LIST_META_CONTEXT, &meta("p/a", queries)).await;
        assert_eq!(replies.len(), found + 1, "{queries:?}: {replies:?}");
    }
    let names: Vec<String> = (0..40).map(|n| format!("x-storagerouter:diff:{:032x}", 7 + n % 2)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(c.option(opt::SET_META_CONTEXT, &meta("p/a", &names)).await.len(), 3, "each once");
    c.option(opt::SET_META_CONTEXT, &meta("p/a", &["x-storagerouter:diff:gone"])).await;
    c.option(opt::GO, &info("p/a", &[])).await;
    assert_eq!(c.call(0, STATUS, 0, MIB).await, EIO);
    assert_eq!(c.call(0, FLUSH, 0, 0).await, 0);
}
