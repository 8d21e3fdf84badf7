//! What each key means, once: the example file and the table in the handbook are made from it.
//!
//! The tests beside this file compare both with what is in `docs/`, and write them when
//! `STORAGEROUTER_WRITE_DOCS` is set.

use super::Settings;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Every key with its meaning, in the order of the example file. A key whose default is not
/// written in the settings (because it is absent, or follows from another) says so itself.
pub const KEYS: &[(&str, &str)] = &[
    (
        "data_dir",
        "Where the write buffer, the index and the registry are. Absent: /var/lib/storagerouter for root, else ~/.local/share/storagerouter.",
    ),
    ("shutdown_seconds", "Seconds that a stop may take."),
    ("worker_threads", "Threads of the runtime; 0 is one per core, at least 2."),
    ("log.filter", "What is logged: directives as in \"info,volumedriver=debug\". Read again at SIGHUP."),
    ("log.format", "How a log line looks: \"text\", or \"json\" (one object per line)."),
    ("nbd.listen", "TCP address of the NBD server; empty: none."),
    (
        "nbd.unix",
        "Unix socket of the NBD server (mode 0600); empty: none. Absent: nbd.sock in the data directory.",
    ),
    ("nbd.tls", "TLS for NBD: \"off\", \"allow\" (the client chooses) or \"require\"."),
    ("nbd.tls_cert", "PEM file with the server's certificate chain, its own certificate first."),
    ("nbd.tls_key", "PEM file with the private key of that certificate."),
    (
        "nbd.tls_client_ca",
        "PEM file with the authorities of client certificates; when set, a client must show one.",
    ),
    ("nbd.max_connections", "NBD connections at a time, TCP and unix together."),
    ("nbd.max_inflight_requests", "Requests of one connection that are worked on at a time."),
    ("nbd.max_inflight_bytes", "Bytes of payload that one connection may hold in memory."),
    (
        "nbd.memory_mib",
        "Memory for payload of requests, in MiB, all connections together; without it requests wait.",
    ),
    (
        "nbd.alone_threads",
        "Threads for clients that send one request at a time (never more than processors; 0: none): half the latency, \
         for a processor that is busy while such a client is.",
    ),
    ("edge.listen", "TCP address of the edge protocol's server; empty: none."),
    (
        "edge.unix",
        "Unix socket of the edge protocol's server (mode 0600); empty: none. Absent: edge.sock in the data directory.",
    ),
    ("edge.tls", "TLS for the edge protocol on TCP: \"off\" or \"require\"."),
    ("edge.tls_cert", "PEM file with the server's certificate chain, its own certificate first."),
    ("edge.tls_key", "PEM file with the private key of that certificate."),
    (
        "edge.tls_client_ca",
        "PEM file with the authorities of client certificates; when set, a client must show one.",
    ),
    ("edge.max_connections", "Edge connections at a time, TCP and unix together."),
    ("edge.max_channels", "Attachments of one connection; a router that forwards has many."),
    ("edge.window_requests", "Requests of one attachment that may be under way."),
    (
        "edge.window_bytes",
        "Bytes of payload of one attachment that may be under way; a vDisk's largest payload at least.",
    ),
    (
        "edge.memory_mib",
        "Memory for payload of requests, in MiB, all connections together; without it requests wait.",
    ),
    ("edge.lease_seconds", "Seconds for which an attachment is kept when its client is gone."),
    ("edge.idle_seconds", "Seconds after which a connection that says nothing is closed."),
    (
        "edge.alone_threads",
        "Threads for clients that send one request at a time (never more than processors; 0: none): less latency, for a \
         processor that is busy meanwhile.",
    ),
    ("api.listen", "TCP address of the REST API, /metrics, /healthz and /readyz."),
    ("api.tls_cert", "PEM file with the API's certificate chain; with api.tls_key it turns TLS on."),
    ("api.tls_key", "PEM file with the API's private key."),
    (
        "api.token_file",
        "File with the bearer token that clients of the API must send: 16 or more visible characters.",
    ),
    ("index.cache_mib", "Memory for blocks of the index table, in MiB."),
    ("index.write_buffer_mib", "Memory for unflushed writes of the index table, in MiB."),
    (
        "objectrouter.parallel_opens",
        "Volumes that are opened at a time in the background; a client's own request does not wait for them.",
    ),
    (
        "objectrouter.retry_seconds",
        "Longest pause, in seconds, between two tries to open a vPool or a volume.",
    ),
    (
        "objectrouter.detach_drain_seconds",
        "Seconds that detaching a vPool waits for the unsent data of each of its vDisks.",
    ),
    (
        "objectrouter.purge_after_seconds",
        "Seconds after which the last traces of a deleted vDisk are removed from the object store.",
    ),
    (
        "objectrouter.dtl",
        "How the unsent tail of a new vDisk is replicated to other routers: auto (sync when there are any, else none), none, async, sync.",
    ),
    (
        "objectrouter.redirect",
        "Whether an edge client is sent to the router that owns its vDisk; else this router passes its requests on.",
    ),
    (
        "objectrouter.auto_migrate",
        "Whether vDisks that are not told otherwise move to the router through which most of what is asked of them comes.",
    ),
    (
        "objectrouter.auto_migrate_reads",
        "How much has to be read through one router in auto_migrate_seconds, twice in a row, for a vDisk to move there: requests, a large one once for each 64 KiB; 0: reads move nothing.",
    ),
    ("objectrouter.auto_migrate_writes", "The same of writes."),
    ("objectrouter.auto_migrate_seconds", "Seconds in which that is counted."),
    (
        "volumedriver.journal_mib",
        "Size of the write buffer on disk, in MiB. Bounds what is acknowledged and not yet on the backend.",
    ),
    ("volumedriver.segment_mib", "Size of one journal segment, in MiB."),
    (
        "volumedriver.buffer_mib",
        "Memory for unsealed and unsent data, in MiB, all volumes together; beyond it the journal is read.",
    ),
    ("volumedriver.read_cache_mib", "Memory for clusters read from the backend, in MiB."),
    (
        "volumedriver.ssd_cache_mib",
        "Room in the data directory for clusters that are read again, in MiB; 0 for none. It is taken as it is needed, \
         while the disk has room for the whole write buffer beside it.",
    ),
    ("volumedriver.index_cache_mib", "Memory for pages of the cluster index, in MiB."),
    (
        "volumedriver.seal_age_seconds",
        "Seconds after which the oldest unsealed write is sealed into a SCO, full or not.",
    ),
    ("volumedriver.uploads_per_volume", "SCOs of one volume that are uploaded at a time."),
    ("volumedriver.uploads", "SCOs of all volumes that are uploaded at a time."),
    ("volumedriver.tlog_scos", "SCOs covered by one TLog."),
    ("volumedriver.tlog_entries", "Map entries covered by one TLog."),
    ("volumedriver.scrub", "Whether volumes are scrubbed by themselves."),
    (
        "volumedriver.scrub_percent",
        "Bytes stored for each 100 live ones from which on a volume is scrubbed (105 to 1000); less takes more copying.",
    ),
    (
        "cluster.name",
        "This router's name in the cluster: letters, digits, '.', '_' and '-'. Absent: the data directory's id.",
    ),
    (
        "cluster.domains",
        "What this router shares with others and may fail as one, as in [\"rack-1\", \"room-a\"]: what it writes is kept a second time \
         outside of them.",
    ),
    (
        "cluster.recovery_domains",
        "Domains in which what this router writes is kept a second time, where that is possible.",
    ),
    (
        "cluster.advertise",
        "Host that other routers reach this one at, a name or an address; its certificate must be for it.",
    ),
    ("cluster.listen", "TCP address of the registry, for other routers."),
    (
        "cluster.lease_ms",
        "Milliseconds without a sign of life after which others may take over this router's vDisks (500 to 60000).",
    ),
    (
        "cluster.tls_cert",
        "PEM file with this router's certificate chain, its own certificate first: for what routers say to each other. With it go the two below.",
    ),
    ("cluster.tls_key", "PEM file with the private key of that certificate."),
    (
        "cluster.tls_ca",
        "PEM file with the authorities of all routers' certificates: who has one of them is believed to be a router of the cluster.",
    ),
    (
        "dtl.listen",
        "TCP address of the DTL service, which keeps the newest writes of other routers' vDisks; empty: none.",
    ),
    (
        "dtl.unix",
        "Unix socket of the DTL service (mode 0600), which routers on the same machine use; no other router may have the \
         same path. Empty: none. Absent: dtl-ID.sock in the data directory, ID from its own identity.",
    ),
    (
        "dtl.tls_cert",
        "PEM file with the service's certificate chain. Absent, with the two below: those of the cluster section.",
    ),
    ("dtl.tls_key", "PEM file with the private key of that certificate."),
    ("dtl.tls_client_ca", "PEM file with the authorities of the other routers' certificates."),
    (
        "dtl.storage",
        "Where it is kept: \"disk\" (in the data directory), or \"memory\", which a restart forgets.",
    ),
    ("dtl.size_mib", "Size of all logs that are kept for others, in MiB. On disk it takes a quarter more."),
    ("dtl.volume_mib", "Size of the logs of one volume, in MiB. A volume without room waits alone."),
    ("dtl.segment_mib", "Size of a segment on disk, in MiB."),
    ("dtl.volumes", "Volumes that have logs here, at most."),
    ("dtl.max_connections", "Connections at a time; each other router has one."),
    ("dtl.window_kib", "Unconfirmed KiB that a volume may have under way."),
    ("dtl.idle_seconds", "Seconds without a word after which a connection is closed."),
    ("dtl.handshake_seconds", "Seconds that a connection has to say who it is, TLS and all."),
    (
        "dtl.alone_threads",
        "Threads for routers that send one write at a time (never more than processors; 0: none): less latency, for a \
         processor that is busy meanwhile.",
    ),
    (
        "dtl.client.heartbeat_ms",
        "Milliseconds after which a quiet connection to a peer is asked for a sign of life.",
    ),
    ("dtl.client.timeout_ms", "Milliseconds without a sign of life after which a peer is taken for dead."),
    ("dtl.client.answer_ms", "Milliseconds that an answer of a peer that gives signs of life may take."),
    ("dtl.client.reconnect_ms", "Milliseconds between two attempts to connect to a peer."),
    (
        "dtl.client.queue_kib",
        "KiB that wait to be sent to one peer; what is more is read from the write buffer again.",
    ),
    ("dtl.client.read_ahead_kib", "KiB of a log that are read ahead in a takeover."),
    (
        "dtl.client.fail_after_ms",
        "Milliseconds that a peer may be away, or confirm nothing though something waits, until the volume goes on without it, and says so.",
    ),
    (
        "dtl.client.replace_after_ms",
        "Milliseconds after which a peer that failed is given up for another one.",
    ),
    ("dtl.client.retry_after_ms", "Milliseconds between two attempts to find a peer."),
];

/// The defaults, flat: `section.key` to its value.
pub fn defaults() -> Result<BTreeMap<String, Value>> {
    let table: Table =
        toml::from_str(&Settings::default().to_toml()?).context("reading the defaults back")?;
    let mut flat = BTreeMap::new();
    flatten("", table, &mut flat);
    Ok(flat)
}

fn flatten(section: &str, table: Table, flat: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let key = if section.is_empty() { key } else { format!("{section}.{key}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, flat),
            value => {
                flat.insert(key, value);
            }
        }
    }
}

/// The example file: every key with its default and its meaning.
pub fn example() -> Result<String> {
    let defaults = defaults()?;
    let mut out = String::from(
        "# Every setting of storagerouter with its default. Made from the code; what you leave out keeps\n\
         # its default. A line of its own that begins with '#' and a key shows one that is absent.\n",
    );
    let mut section = "";
    for (key, meaning) in KEYS {
        let (in_section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if in_section != section {
            section = in_section;
            out.push_str(&format!("\n[{section}]\n"));
        } else {
            out.push('\n');
        }
        for line in wrap(meaning, 96) {
            out.push_str(&format!("# {line}\n"));
        }
        match defaults.get(*key) {
            Some(value) => out.push_str(&format!("{name} = {value}\n")),
            None => out.push_str(&format!("#{name} = \"\"\n")),
        }
    }
    Ok(out)
}

/// The table of the handbook.
#[cfg(test)]
pub fn markdown() -> Result<String> {
    let defaults = defaults()?;
    let mut out = String::from("| key | default | meaning |\n|---|---|---|\n");
    for (key, meaning) in KEYS {
        let default = defaults.get(*key).map_or("absent".to_string(), |value| format!("`{value}`"));
        out.push_str(&format!("| `{key}` | {default} | {} |\n", meaning.replace('|', "\\|")));
    }
    Ok(out)
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if let Some(line) = lines.last_mut()
            && (line.is_empty() || line.len() + 1 + word.len() <= width)
        {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines
}
