//! A client may say anything: the fuzz targets, run over what real clients said (`tests/fuzz/corpus`), and over
//! random changes of it.

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;

use bytes::{Bytes, BytesMut};
use common::Epoch;
use edge_client::wire::{Attach, Mode, Op, Request, ToServer, put_prologue};

fn targets() -> impl Iterator<Item = &'static (&'static str, fn(&[u8]))> {
    edge::nbd::fuzz::TARGETS.iter().chain(edge_client::fuzz::TARGETS).chain(edge::protocol::fuzz::TARGETS)
}

fn target(name: &str) -> fn(&[u8]) {
    let found = targets().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1
}

#[test]
fn options_and_requests_of_any_bytes_are_read_or_refused() {
    mutate::run("nbd_options", target("nbd_options"), 20_000);
    mutate::run("nbd_requests", target("nbd_requests"), 10_000);
}

#[test]
fn a_session_of_any_bytes_ends() {
    mutate::run("nbd_session", target("nbd_session"), 6000);
}

#[test]
fn frames_of_any_bytes_are_read_or_refused() {
    mutate::run("edge_frames", target("edge_frames"), 20_000);
    mutate::run("edge_bodies", target("edge_bodies"), 20_000);
    mutate::run("edge_addresses", target("edge_addresses"), 2000);
}

#[test]
fn an_edge_session_of_any_bytes_ends() {
    mutate::run("edge_session", target("edge_session"), 6000);
}

/// What clients of the edge protocol say.
fn sayings() -> Vec<(&'static str, ToServer)> {
    let attach = |name: &str, mode| {
        ToServer::Attach(Attach {
            export: name.into(),
            mode,
            attachment: 7,
            session: 2,
            since: Epoch(0),
            resumed: false,
            pass_on: false,
            hops: 0,
            client: "host".into(),
            via: String::new(),
        })
    };
    // With virtual time the first epoch of an export is always this one.
    let request = |op| ToServer::Request(Request { sequence: 9, epoch: Epoch(1_700_000_000_000_000), op });
    vec![
        ("attach", attach("p/a", Mode::Exclusive)),
        ("attach-shared", attach("vpool/vdisk@snapshot", Mode::Shared)),
        ("ping", ToServer::Ping),
        ("write", request(Op::Write { offset: 4096, data: Bytes::from_static(&[5; 1024]), fua: true })),
        ("read", request(Op::Read { offset: 4096, len: 8192 })),
        ("zeroes", request(Op::Zeroes { offset: 0, len: 65536, hole: true, fua: false })),
        ("discard", request(Op::Discard { offset: 512, len: 512, fua: false })),
        ("extents", request(Op::Extents { offset: 0, len: 65536 })),
        ("flush", request(Op::Flush)),
        ("detach", ToServer::Detach),
    ]
}

/// Makes the corpora of the edge protocol anew.
#[test]
#[ignore = "writes into the source tree: cargo xtask fuzz --seed-corpus"]
fn seed_corpus() {
    let keep = |target: &str, name: &str, bytes: &[u8]| {
        let folder = mutate::folder().join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let (mut all, mut first) = (BytesMut::new(), BytesMut::new());
    put_prologue(&mut first, 1, 1);
    let mut session = first.clone();
    for (name, said) in sayings() {
        let mut frame = BytesMut::new();
        let payload = said.put(&mut frame, 1);
        frame.extend_from_slice(&payload);
        all.extend_from_slice(&frame);
        keep("edge_bodies", name, &[&frame[4..5], &frame[20..]].concat());
        if name != "attach-shared" {
            session.extend_from_slice(&frame);
        }
    }
    keep("edge_frames", "client", &all);
    keep("edge_frames", "prologue", &first);
    keep("edge_session", "client", &session);
    for (name, address) in
        [("tcp", "host.example:10810"), ("six", "[::1]:1"), ("unix", "unix:/run/edge.sock")]
    {
        keep("edge_addresses", name, address.as_bytes());
    }
}

#[test]
fn every_target_has_a_corpus() {
    for (name, _) in targets() {
        mutate::corpus(name);
    }
}
