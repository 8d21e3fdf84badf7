//! The `vpool` object: one block that says which vPool lies here.

use super::cursor::{Reader, Writer, refuse};
use super::envelope::{Envelope, MAX_BODY, ObjectKind};
use bytes::Bytes;
use common::{Epoch, Error, ErrorKind, Result, VolumeId};

/// The version of the whole vPool's layout that is written, and the highest that is read.
pub const LAYOUT: u16 = 1;
/// The longest name, in bytes.
pub const MAX_NAME: usize = 255;
/// log2 of the smallest and the largest cluster.
pub const CLUSTER_LOG2: std::ops::RangeInclusive<u8> = 12..=16;

/// What the `vpool` object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolObject {
    /// Random identity.
    pub id: u128,
    /// Name at creation.
    pub name: String,
    /// log2 of the bytes in a cluster: 12 to 16.
    pub cluster_log2: u8,
    /// When it was created, in seconds since 1970 UTC.
    pub created: u64,
}

impl PoolObject {
    /// The object; `writer` is the random number of the process that puts it.
    pub fn encode(&self, writer: u128) -> Result<Bytes> {
        self.check().map_err(refuse)?;
        let mut w = Writer::default();
        w.u16(LAYOUT).u8(self.cluster_log2).u8(self.name.len() as u8).zeroes(4);
        w.u128(self.id).u64(self.created).bytes(self.name.as_bytes());
        let envelope = Envelope {
            kind: ObjectKind::Pool,
            volume: VolumeId(0),
            epoch: Epoch(0),
            number: 0,
            writer,
            compat: 0,
        };
        envelope.encode(&w.buf).map(Bytes::from)
    }

    /// What the object `bytes` says.
    pub fn decode(bytes: &[u8]) -> Result<PoolObject> {
        let (envelope, body) = Envelope::decode_as(&[ObjectKind::Pool], bytes)?;
        if bytes.len() != super::BLOCK {
            return Err(Error::corrupt(format!(
                "{envelope}: {} bytes instead of {}",
                bytes.len(),
                super::BLOCK
            )));
        }
        let mut r = Reader::new(&envelope, body);
        let layout = r.u16()?;
        if layout != LAYOUT {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{envelope}: layout {layout}, this program reads layout {LAYOUT}"),
            ));
        }
        let cluster_log2 = r.u8()?;
        let name_len = r.u8()? as usize;
        r.zeroes(4)?;
        let (id, created) = (r.u128()?, r.u64()?);
        let name = read_name(&envelope, r.take(name_len)?)?;
        r.end()?;
        let pool = PoolObject { id, name, cluster_log2, created };
        pool.check()?;
        Ok(pool)
    }

    fn check(&self) -> Result<()> {
        check_cluster(&"vpool object", self.cluster_log2)?;
        if self.name.len() > MAX_NAME {
            return Err(Error::corrupt(format!("vpool object: a name of {} bytes", self.name.len())));
        }
        Ok(())
    }
}

/// A name as text.
pub(crate) fn read_name(who: &dyn std::fmt::Display, bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(name) => Ok(name.to_string()),
        Err(e) => Err(Error::corrupt(format!("{who}: the name is not text: {e}"))),
    }
}

/// Whether a cluster may have 2^`log2` bytes.
pub(crate) fn check_cluster(who: &dyn std::fmt::Display, log2: u8) -> Result<()> {
    if CLUSTER_LOG2.contains(&log2) {
        return Ok(());
    }
    Err(Error::corrupt(format!("{who}: clusters of 2^{log2} bytes, should be 2^12 to 2^16")))
}

/// Input of a fuzzer: raw, and as the body of a block with right checksums.
pub fn fuzz(data: &[u8]) {
    check(data);
    let envelope = Envelope {
        kind: ObjectKind::Pool,
        volume: VolumeId(0),
        epoch: Epoch(0),
        number: 0,
        writer: 0,
        compat: 0,
    };
    if let Ok(block) = envelope.encode(&data[..data.len().min(MAX_BODY)]) {
        check(&block);
    }
}

/// Whatever is read is written the same.
pub(crate) fn check(data: &[u8]) {
    if let (Ok(pool), Ok((envelope, _))) = (PoolObject::decode(data), Envelope::decode(data)) {
        let again = pool.encode(envelope.writer);
        assert_eq!(again.and_then(|bytes| PoolObject::decode(&bytes)).ok(), Some(pool));
    }
}
