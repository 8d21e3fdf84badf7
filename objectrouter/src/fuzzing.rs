//! Every decoder of this crate as a function of bytes, for fuzzers. A function returns, or it found a fault.

use crate::{registry, sizes, stream};
use common::{Name, VolumeId};

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] =
    &[("registry", registry::fuzz), ("names", names), ("export_stream", stream::fuzz)];

/// Names, identities, and sizes as a request brings them; what is read is written the same.
fn names(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(name) = text.parse::<Name>() {
            assert_eq!(name.to_string(), text);
        }
        if let Ok(id) = text.parse::<VolumeId>() {
            assert_eq!(id.to_string(), text.to_ascii_lowercase());
        }
    }
    if let Some(([size, more], _)) = data.as_chunks::<8>().0.split_first_chunk() {
        let (size, more) = (u64::from_le_bytes(*size), u64::from_le_bytes(*more));
        for cluster in (12..=16).map(|log2| 1 << log2) {
            if sizes::check_size(size, cluster).is_ok() {
                assert!(size.is_multiple_of(u64::from(cluster)));
            }
            let _ = sizes::check_growth(size, more, cluster);
            let _ = sizes::check_sco_size(size as u32, cluster);
        }
        let _ = sizes::check_cluster_size(more as u32);
    }
}
