//! The seeded bugs, and the rings that must notice them.

/// A way to be wrong.
pub struct Mutant {
    /// What switches it on.
    pub name: &'static str,
    /// What it does, and which rule of the design it breaks.
    pub what: &'static str,
}

/// All of them; `common::mutant::is_on` asks for each by name.
pub const ALL: &[Mutant] = &[
    m("acknowledge-before-the-journal", "a write returns before the kernel has it (promise 2)"),
    m("flush-without-sync", "a flush returns without fdatasync (promise 2)"),
    m("fua-ignored", "a FUA write returns without fdatasync (promise 2)"),
    m("sync-of-the-last-segment-only", "a flush syncs the newest journal segment, not those before it"),
    m("failed-sync-ignored", "an fdatasync that fails counts as done"),
    m("failed-sync-is-tried-again", "an fdatasync that fails is tried again, and that one counts"),
    m("failed-write-ignored", "a journal write that fails is acknowledged"),
    m("resize-not-durable", "a growth returns before it is durable"),
    m("no-claim", "two read-modify-writes of a cluster at a time"),
    m("modify-reads-too-early", "a read-modify-write does not wait for writes under way"),
    m("discard-forgotten", "reads do not see a discard until it is committed"),
    m("sco-without-discards", "a SCO holds only data: discards come back from the dead (rule 9)"),
    m("coalescing-keeps-the-older", "of two writes in one SCO the older stays"),
    m("commit-out-of-order", "a SCO commits before those in front of it are durable"),
    m("lost-put-counts", "a put without an answer counts as durable"),
    m("put-overwrites", "puts without the condition that the name is free (rule 1)"),
    m("own-reply-lost-is-an-error", "meeting one's own object after a lost reply is taken for a foreign one"),
    m("no-look-before-commit", "committing without looking for a newer owner (rule 8)"),
    m("epoch-not-raised", "a restart goes on in the old epoch (rule 1)"),
    m("serves-before-the-cut", "serving without the second Manifest (rule 8)"),
    m("cut-does-not-bound", "the history of older epochs is not cut at what was found (rule 8)"),
    m("journal-ignores-the-cut", "journal records beyond the end of their epoch count (rule 8)"),
    m("scan-goes-on-behind-a-gap", "SCOs behind a missing one count (rule 8)"),
    m("recovery-misses-the-last-entry", "recovery is off by one"),
    m("torn-payload-accepted", "recovery does not check the payload's checksums"),
    m("recovery-jumps-over-what-is-torn", "recovery goes on behind a torn record"),
    m("segment-freed-too-early", "a journal segment is used again while it is needed"),
    m(
        "moved-entry-of-another-epoch",
        "copying forward an entry that was cut off moves the one that has its LSN now",
    ),
    m("index-not-fed", "the committed map does not learn of a SCO"),
    m("watermark-ahead", "the index on disk says it is newer than it is"),
    m("live-cluster-not-copied", "a scrub drops clusters that somebody reads (rule 10)"),
    m("relocation-not-counted", "a local index from before a scrub is believed: it names SCOs that are gone"),
    m("relocation-overwrites", "a scrub maps a cluster to its copy although it was overwritten meanwhile"),
    m("merge-across-a-snapshot", "TLogs on both sides of a snapshot become one (rule 10)"),
    m("merge-drops-tombstones", "a merge forgets what was discarded, with TLogs or a parent below (rule 9)"),
    m("fill-overwrites", "an index that is filled in from TLogs forgets what is younger"),
    m("delete-before-the-manifest", "a SCO is deleted before the Manifest that no longer names it (rule 10)"),
    m("sweep-of-the-open-epoch", "the sweep for orphans takes the objects of the epoch that is open"),
    m("sco-across-a-snapshot", "SCOs and TLogs go on behind a snapshot (rule 10)"),
    m("marker-lost", "a snapshot whose marker is committed is not listed"),
    m("snapshot-not-flushed", "a snapshot returns before its marker is durable (promise 4)"),
    m("snapshot-is-the-head", "what is read as a snapshot, or as a clone, is the head (rule 10)"),
    m("tlogs-of-snapshots-dropped", "a TLog that only a snapshot sees is deleted (rule 10)"),
    m("clone-without-tombstones", "what a clone discarded shows its parent again (rule 9)"),
    m("rollback-forgotten", "the cut of a rollback does not move the head (rule 9)"),
    m("index-of-another-head", "after a rollback the local index is believed (rule 9)"),
    m("diff-without-tail", "what is committed and in no TLog yet is not said to differ from a snapshot"),
    m("diff-without-rollback", "what a rollback dropped is not said to differ from a snapshot that has it"),
    m("cache-returns-another-key", "the read cache gives the cluster of another slot"),
    m("ssd-is-believed", "what the read cache on the SSD gives is not verified (promise 6)"),
    m("crc-ignored", "a wrong checksum on a read is ignored (promise 6)"),
];

/// A row of a table.
pub const fn m(name: &'static str, what: &'static str) -> Mutant {
    Mutant { name, what }
}
