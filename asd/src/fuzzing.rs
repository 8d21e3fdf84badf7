//! Every decoder of this crate as a function of bytes, for fuzzers and for the test that changes them at random. A
//! function returns, or it found a fault.
//!
//! Bytes are taken as they are and with their checksums made right: behind a checksum a fuzzer that does not know it
//! would never get.

use crate::{store::format, wire};

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("asd_wire", |data| {
        wire::fuzz(data);
        wire::fuzz(&wire::with_checksums(data));
    }),
    ("asd_storage", |data| {
        format::fuzz(data);
        format::fuzz(&format::with_checksum(data));
    }),
];
