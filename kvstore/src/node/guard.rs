//! Messages that an honest member with an intact log does not send. Raft would panic on them, or believe them.

use super::storage::Memory;
use common::{Error, Result};
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};

/// Terms go up by one. Who comes from so far in the future has not counted, and would leave no numbers to those who do.
const MAX_JUMP: u64 = 1 << 32;

fn bad(from: u64, why: &str) -> Error {
    Error::invalid(format!("a message of member {from} is refused: {why}"))
}

/// Whether the term of `message` can be one.
pub(super) fn check_term(raft: &RawNode<Memory>, from: u64, message: &Message) -> Result<()> {
    let (term, own) = (message.term, raft.raft.term);
    if term == 0 {
        // To raft it is a message from within, and not looked at closely.
        return Err(bad(from, "it has no term"));
    }
    if term > own.saturating_add(MAX_JUMP) {
        return Err(bad(from, &format!("nobody reaches term {term} by counting, we are in {own}")));
    }
    Ok(())
}

/// Whether `message` asks for a vote, or for the promise of one.
pub(super) fn asks_for_a_vote(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
}

/// Whether `message` hands over a lead that its sender can't have, as far as is known here. An election that begins by it
/// skips what else comes first: whether a leader is alive, and on a lone voter the wait for the disk.
pub(super) fn is_hasty(node: &RawNode<Memory>, message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgTimeoutNow
        && !node.raft.prs().conf().voters().contains(message.from)
}

/// Whether `message`, which came from member `from`, may be given to `raft`.
pub(super) fn check(node: &RawNode<Memory>, from: u64, message: &Message) -> Result<()> {
    use MessageType as M;
    let refuse = |why: String| Err(bad(from, &why));
    let raft = &node.raft;
    if message.from != from || message.to != raft.id || from == raft.id || from == raft::INVALID_ID {
        return refuse(format!("it says that it is from member {} to {}", message.from, message.to));
    }
    check_term(node, from, message)?;
    let last = raft.raft_log.last_index();
    let leads_here = raft.state == StateRole::Leader && message.term == raft.term;
    match message.get_msg_type() {
        M::MsgHeartbeat if message.term >= raft.term && message.commit > last => refuse(format!(
            "it knows entry {} as ours, and our log ends with {last}: this member has lost a part of its log; remove \
             it and add it again under a new id",
            message.commit
        )),
        M::MsgHeartbeat | M::MsgAppend if leads_here => {
            refuse(format!("it leads in term {}, as we do", message.term))
        }
        M::MsgAppend => check_append(message).or_else(refuse),
        M::MsgAppendResponse if leads_here && message.index > last => {
            refuse(format!("it has entry {}, and our log ends with {last}", message.index))
        }
        // How far it goes back; beyond our end there is nothing that could be compared.
        M::MsgAppendResponse if leads_here && message.reject && message.reject_hint > last => {
            refuse(format!("it hints at entry {}, and our log ends with {last}", message.reject_hint))
        }
        M::MsgAppendResponse if message.request_snapshot != raft::INVALID_INDEX => {
            refuse("it asks for a snapshot, which we give when it is needed".into())
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
        kind => refuse(format!("{kind:?} is not sent to others")),
    }
}

fn check_append(message: &Message) -> Result<(), String> {
    if message.log_term > message.term || (message.index > 0 && message.log_term == 0) {
        // Raft takes term 0 for that of any entry that it does not have.
        return Err(format!("entry {} has no term {}", message.index, message.log_term));
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        if before.0.checked_add(1) != Some(entry.index) {
            return Err("its entries are not dense".into());
        }
        if entry.term < before.1 || entry.term == 0 || entry.term > message.term {
            return Err("its entries have terms that nobody gave them".into());
        }
        if entry.data.len() > crate::log::MAX_ENTRY_BYTES || entry.context.len() > crate::log::MAX_CONTEXT {
            return Err(format!("entry {} is larger than one can be", entry.index));
        }
        before = (entry.index, entry.term);
    }
    Ok(())
}
