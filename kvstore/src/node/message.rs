//! What members say to each other, and its codec.

use crate::machine::staging::MAX_PART;
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::{Error, Result};
use protobuf::Message as _;
use raft::eraftpb::Message;

/// The longest message of raft: a batch of entries, or one that is larger.
const MAX_RAFT: usize = 30 << 20;

/// A part of a snapshot on its way to a member that is too far behind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// The term of the leader that sends it, and the number that it gave the snapshot: together its identity.
    pub term: u64,
    pub id: u64,
    pub sequence: u32,
    pub records: Bytes,
    /// With the last part: raft's own message about the snapshot.
    pub message: Option<Message>,
}

/// What one member tells another.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PeerMessage {
    Raft(Message),
    Part(Part),
    /// Parts of the snapshot below `next` are there.
    PartAck {
        term: u64,
        id: u64,
        next: u32,
    },
}

fn encode_raft(message: &Message, w: &mut Writer) -> Result<()> {
    let bytes = message.write_to_bytes();
    let bytes = bytes.map_err(|e| Error::internal(format!("a message of raft can't be encoded: {e}")))?;
    if bytes.len() > MAX_RAFT {
        return Err(Error::internal(format!("a message of raft has {} bytes", bytes.len())));
    }
    w.bytes(&bytes);
    Ok(())
}

fn decode_raft(r: &mut Reader) -> Result<Message> {
    let bytes = r.bytes(MAX_RAFT)?;
    Message::parse_from_carllerche_bytes(&bytes).map_err(|e| r.bad(&format!("not a message of raft: {e}")))
}

impl PeerMessage {
    pub fn encode(&self) -> Result<Bytes> {
        let mut w = Writer::new();
        match self {
            PeerMessage::Raft(message) => encode_raft(message, w.u8(0))?,
            PeerMessage::Part(part) => {
                w.u8(1).u64(part.term).u64(part.id).u32(part.sequence).bytes(&part.records);
                match &part.message {
                    Some(message) => encode_raft(message, w.u8(1))?,
                    None => {
                        w.u8(0);
                    }
                }
            }
            PeerMessage::PartAck { term, id, next } => {
                w.u8(2).u64(*term).u64(*id).u32(*next);
            }
        }
        Ok(w.finish())
    }

    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "message of a member");
        let message = match r.u8()? {
            0 => PeerMessage::Raft(decode_raft(&mut r)?),
            1 => {
                let (term, id, sequence) = (r.u64()?, r.u64()?, r.u32()?);
                let records = r.bytes(MAX_PART)?;
                let message = if r.bool()? { Some(decode_raft(&mut r)?) } else { None };
                PeerMessage::Part(Part { term, id, sequence, records, message })
            }
            2 => PeerMessage::PartAck { term: r.u64()?, id: r.u64()?, next: r.u32()? },
            _ => return Err(r.bad("it is of an unknown kind")),
        };
        r.end()?;
        Ok(message)
    }
}
