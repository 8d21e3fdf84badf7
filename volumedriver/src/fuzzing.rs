//! Every decoder of this crate as a function of bytes, for fuzzers and for the test that replays what they
//! began with. A function returns, or it found a fault.
//!
//! Bytes are taken as they are and with their checksums made right: behind a checksum a fuzzer that
//! does not know it would never get.

use crate::format::{envelope, keys, list, manifest, pool, sco, snapshot, tlog};
use crate::{index, inspect, journal, read_cache};

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("envelope", envelope::fuzz),
    ("keys", keys::fuzz),
    ("pool", |data| {
        pool::fuzz(data);
        pool::check(&envelope::with_checksums(data));
    }),
    ("sco", |data| {
        sco::fuzz(data);
        sealed(data, sco::check);
    }),
    ("tlog", |data| {
        tlog::fuzz(data);
        sealed(&tlog::with_checksums(data), tlog::check);
    }),
    ("manifest", |data| {
        manifest::fuzz(data);
        sealed(&manifest::with_checksums(data), manifest::verify);
    }),
    ("list", |data| {
        list::fuzz(data);
        sealed(data, list::verify);
    }),
    ("snapshots", |data| {
        snapshot::fuzz(data);
        sealed(data, snapshot::verify);
    }),
    ("index_page", index::page::fuzz),
    ("cache_segment", read_cache::fuzz),
    ("journal_record", journal::fuzz),
    ("journal_recovery", |data| {
        journal::fuzz::recover(data);
        journal::fuzz::recover(&journal::fuzz::with_checksums(data));
    }),
    ("inspect", |data| {
        inspect::fuzz(data);
        inspect::fuzz(&envelope::with_checksums(data));
        inspect::fuzz(&journal::fuzz::with_checksums(data));
    }),
];

/// The object with right checksums, and with right lengths in its footer too.
fn sealed(data: &[u8], check: fn(&[u8])) {
    check(&envelope::with_checksums(data));
    check(&envelope::with_ends(data));
}
