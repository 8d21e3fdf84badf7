//! Every decoder of this crate as a function of bytes, for fuzzers. A function returns, or it found a fault.
//!
//! What is decoded is encoded again and must be the same bytes, wherever there is one way to write a thing.

use crate::backup::Restored;
use crate::machine::command::{Answer, Command};
use crate::machine::layout::{Configuration, Head, Meta, Session, decode_events, encode_events};
use crate::machine::staging::records;
use crate::node::message::PeerMessage;
use crate::node::request::{Request, Response};
use crate::transport::frame::{Hello, MAX_FRAME, read};
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use futures::executor::block_on;

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("kv_request", request),
    ("kv_response", response),
    ("kv_message", message),
    ("kv_frames", frames),
    ("kv_command", command),
    ("kv_state", state),
    ("kv_log", crate::log::fuzz),
    ("kv_backup", backup),
    ("kv_restored", restored),
];

fn bytes(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(data)
}

fn request(data: &[u8]) {
    if let Ok(request) = Request::decode(bytes(data)) {
        assert_eq!(request.encode(), data);
    }
}

fn response(data: &[u8]) {
    if let Ok((response, goes_on)) = Response::decode(bytes(data)) {
        let parts = response.encode(usize::MAX);
        // A part of a page that goes on is written as the last one.
        assert!(parts.len() == 1 && (goes_on || parts[0] == data));
    }
}

fn message(data: &[u8]) {
    if let Ok(message) = PeerMessage::decode(bytes(data)) {
        // Protobuf may say the same in other words.
        let again = message.encode().expect("a message that was read is written");
        assert_eq!(PeerMessage::decode(again).ok(), Some(message));
    }
}

/// A connection: the greeting, and what follows.
fn frames(data: &[u8]) {
    let mut stream = data;
    while let Ok(Some(frame)) = block_on(read(&mut stream, MAX_FRAME)) {
        if let Ok(hello) = Hello::decode(frame.clone()) {
            assert_eq!(hello.encode(), frame);
        }
    }
}

fn command(data: &[u8]) {
    if let Ok(command) = Command::decode(bytes(data)) {
        assert_eq!(command.encode(), data);
        let _ = command.check();
    }
}

/// Records of the state: the first byte says of which kind.
fn state(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => {
            if let Ok(head) = Head::decode(bytes(data)) {
                assert_eq!(head.encode(), data);
            }
        }
        1 => {
            if let Ok(meta) = Meta::decode(bytes(data)) {
                assert_eq!(meta.encode(), data);
                let sound = meta.configuration.is_sound();
                assert!(
                    !sound || Configuration::from_raft(&meta.configuration.to_raft()) == meta.configuration
                );
            }
        }
        2 => {
            if let Ok(session) = Session::decode(bytes(data)) {
                assert_eq!(Session::decode(session.encode()).ok(), Some(session));
            }
        }
        3 => {
            let mut r = Reader::new(bytes(data), "history");
            if let Ok(events) = decode_events(&mut r) {
                assert!(data.starts_with(&encode_events(&events)));
            }
        }
        4 => {
            let mut r = Reader::new(bytes(data), "answer");
            if let Ok(answer) = Answer::decode(&mut r) {
                let mut w = Writer::new();
                answer.encode(&mut w);
                assert!(data.starts_with(&w.finish()));
            }
        }
        5 => {
            let _ = crate::machine::layout::decode_pair("key", bytes(data));
        }
        _ => records(bytes(data)).for_each(drop),
    }
}

fn backup(data: &[u8]) {
    let _ = crate::backup::read_all(data);
}

fn restored(data: &[u8]) {
    if let Some(restored) = std::str::from_utf8(data).ok().and_then(Restored::parse) {
        assert_eq!(Restored::parse(&restored.to_string()), Some(restored));
    }
    if let Ok(restored) = Restored::decode(bytes(data)) {
        assert_eq!(restored.encode(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_are_a_fault(
            data in proptest::collection::vec(any::<u8>(), 0..400),
            kind in 0u8..16,
        ) {
            for (_, target) in TARGETS {
                target(&data);
                target(&[&[kind][..], &data].concat());
                // Version 1 of whatever has one.
                target(&[&[1, kind][..], &data].concat());
            }
        }
    }
}
