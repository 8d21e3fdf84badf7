//! The seeded bugs of ownership, the DTL, the use of the registry and the edge protocol, which worlds of several routers
//! must notice.

use crate::sim::mutants::{Mutant, m};

/// All of them; `common::mutant::is_on` asks for each by name.
pub const ALL: &[Mutant] = &[
    m("answers-without-a-lease", "a router answers although its lease has ended (R1)"),
    m("claims-over-a-live-lease", "a volume is claimed while somebody else's lease lives (rule 4)"),
    m(
        "claims-without-a-lease",
        "a claim that is long on its way counts in the name of a seat that is over (rule 4)",
    ),
    m("old-owner-proposes", "an owner whose lease has ended changes the configuration (R3)"),
    m("record-changed-blindly", "a record is replaced without asserting what the change was based on (R3)"),
    m("clean-whatever-came", "a volume that is given up counts as drained (R6)"),
    m("moves-before-it-is-closed", "a volume is given up before its last answers are out (R7)"),
    m(
        "answers-when-closed",
        "what began before a volume was closed is answered when somebody else may own it (R1)",
    ),
    m("recovered-says-all", "a new owner says that it lacks nothing (rule 2)"),
    m("owner-is-its-own-peer", "the tail is replicated to its owner (rule 7)"),
    m("epoch-begins-in-sync", "a new epoch is called in sync with the logs of the one before (rule 7)"),
    m("tail-not-registered", "who takes over forgets where the tail came from (rule 7)"),
    m("earlier-tails-ignored", "a takeover drains the last epoch alone (rule 7)"),
    m("tails-dropped-at-once", "earlier logs are forgotten before the backend has them (rule 7)"),
    m("journal-of-another-boot-believed", "a write buffer that lost power counts as whole (rule 13)"),
    m("unknown-proposal-counts", "a change of the configuration without an answer counts as done (rule 5)"),
    m(
        "acks-by-the-new-config-only",
        "the configuration of before is forgotten while its end is unknown (rule 5)",
    ),
    m("insync-named-too-early", "peers are named in sync that lack something (rule 5)"),
    m("peers-not-waited-for", "a write is acknowledged without the peers (R2)"),
    m("flush-without-peers", "a flush is acknowledged without the peers (R2)"),
    m("trimmed-before-the-backend-has-it", "peers are told to drop what the backend lacks (R2)"),
    m("suspect-log-trusted", "a log whose service restarted counts as whole (rule 6)"),
    m("not-suspect-after-a-restart", "a DTL does not say that it restarted (rule 6)"),
    m("confirm-before-durable", "a DTL confirms a flush before its disk has it (rule 6)"),
    m("old-epoch-accepted", "a DTL takes entries of an epoch that is over (R5)"),
    m("dtl-drains-any-one-log", "one log is enough where each acknowledgement needed one of two (rule 13)"),
    m("no-replay-of-completed", "the edge client forgets what was answered and not flushed (rule 2)"),
    m("stale-epoch-reply-believed", "the edge client believes an owner of before (rule 19)"),
];
