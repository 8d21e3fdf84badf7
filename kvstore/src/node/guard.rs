//! Messages that an honest member with an intact log does not send. Raft would panic on them, or believe them.

use super::storage::Memory;
use common::{Error, Result};
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};

/// Terms go up by one; near the end of the numbers they could not.
const MAX_TERM: u64 = 1 << 62;

/// Whether `message`, which came from member `from`, may be given to `raft`.
pub(super) fn check(raft: &RawNode<Memory>, from: u64, message: &Message) -> Result<()> {
    use MessageType as M;
    let bad = |why: String| Err(Error::invalid(format!("a message of member {from} is refused: {why}")));
    let raft = &raft.raft;
    if message.from != from || message.to != raft.id {
        return bad(format!("it says that it is from member {} to {}", message.from, message.to));
    }
    if message.term > MAX_TERM {
        return bad(format!("nobody reaches term {} by counting", message.term));
    }
    let last = raft.raft_log.last_index();
    match message.get_msg_type() {
        M::MsgHeartbeat if message.term >= raft.term && message.commit > last => bad(format!(
            "it knows entry {} as ours, and our log ends with {last}: this member has lost a part of its log; remove \
             it and add it again under a new id",
            message.commit
        )),
        M::MsgAppend => {
            let follows =
                message.entries.iter().zip(message.index.saturating_add(1)..).all(|(e, i)| e.index == i);
            if !follows {
                return bad("its entries are not dense".into());
            }
            if message.entries.iter().any(|e| e.term > message.term) {
                return bad("it has entries of the future".into());
            }
            Ok(())
        }
        M::MsgAppendResponse
            if raft.state == StateRole::Leader && message.term == raft.term && message.index > last =>
        {
            bad(format!("it has entry {}, and our log ends with {last}", message.index))
        }
        M::MsgAppendResponse
        | M::MsgRequestVote
        | M::MsgRequestVoteResponse
        | M::MsgRequestPreVote
        | M::MsgRequestPreVoteResponse
        | M::MsgHeartbeat
        | M::MsgHeartbeatResponse
        | M::MsgTimeoutNow => Ok(()),
        // Snapshots come in parts; proposals and reads go to the leader by the client.
        kind => bad(format!("{kind:?} is not sent to others")),
    }
}
