//! Answers for people.

use crate::size::human;
use comfy_table::{CellAlignment, Table, presets};
use framework::types::{Health, HealthLevel, Snapshot, Vdisk, VdiskState, Vpool, VpoolState};
use serde_json::Value;

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// Lines without the blanks that fill the last column.
pub(super) fn text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim())).collect()
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

pub fn pairs(rows: Vec<(&str, Option<String>)>) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.into_iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name:width$}  {value}\n")))
        .collect()
}

/// Bytes, for people and exactly.
pub fn both(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human(bytes))
}

fn vpool_state(state: VpoolState) -> &'static str {
    match state {
        VpoolState::Opening => "opening",
        VpoolState::Serving => "serving",
        VpoolState::Failed => "failed",
        VpoolState::Deleting => "deleting",
    }
}

fn vdisk_state(state: VdiskState) -> &'static str {
    match state {
        VdiskState::Serving => "serving",
        VdiskState::Degraded => "degraded",
        VdiskState::Stopped => "stopped",
        VdiskState::Opening => "opening",
        VdiskState::Failed => "failed",
        VdiskState::Creating => "creating",
        VdiskState::Deleting => "deleting",
        VdiskState::Elsewhere => "elsewhere",
        VdiskState::Orphaned => "orphaned",
    }
}

fn place(vpool: &Vpool) -> String {
    if vpool.description.is_empty() {
        vpool.backend.get("kind").and_then(Value::as_str).unwrap_or_default().to_string()
    } else {
        vpool.description.clone()
    }
}

/// `vpool list`.
pub fn vpools(items: &[Vpool]) -> String {
    let mut table = table(&["NAME", "STATE", "VDISKS", "CLUSTER", "BACKEND"]);
    for vpool in items {
        table.add_row([
            vpool.name.clone(),
            vpool_state(vpool.state).to_string(),
            vpool.vdisks.to_string(),
            human(vpool.cluster_size_bytes.into()),
            place(vpool),
        ]);
    }
    align_right(&mut table, &[2, 3]);
    text(&table)
}

/// `vpool show`, and what `vpool create` made.
pub fn vpool(vpool: &Vpool) -> String {
    let mut out = pairs(vec![
        ("name", Some(vpool.name.clone())),
        ("id", Some(vpool.id.clone())),
        ("state", Some(vpool_state(vpool.state).to_string())),
        ("reason", vpool.reason.clone()),
        ("warning", vpool.warning.clone()),
        ("backend", Some(place(vpool))),
        ("cluster size", Some(human(vpool.cluster_size_bytes.into()))),
        ("vdisks", Some(vpool.vdisks.to_string())),
    ]);
    for vdisk in vpool.adopted.iter().flatten() {
        let was =
            vdisk.renamed_from.as_ref().map(|old| format!(" (in the image: {old})")).unwrap_or_default();
        out.push_str(&format!("adopted  {}{was}\n", vdisk.name));
    }
    out
}

/// `vdisk list`.
pub fn vdisks(items: &[Vdisk]) -> String {
    let mut table = table(&["VDISK", "SIZE", "STORED", "DIRTY", "STATE", "IN USE", "NBD"]);
    let size = |bytes: Option<u64>| bytes.map_or("-".to_string(), human);
    for vdisk in items {
        table.add_row([
            format!("{}/{}", vdisk.vpool, vdisk.name),
            human(vdisk.size_bytes),
            size(vdisk.stored_bytes),
            size(vdisk.dirty_bytes),
            vdisk_state(vdisk.state).to_string(),
            vdisk.in_use.to_string(),
            vdisk.nbd_uri.clone().or_else(|| vdisk.nbd_unix_uri.clone()).unwrap_or_default(),
        ]);
    }
    align_right(&mut table, &[1, 2, 3, 5]);
    text(&table)
}

/// `vdisk show`, and what the other commands left.
pub fn vdisk(vdisk: &Vdisk) -> String {
    let frontiers = vdisk.frontiers.map(|f| {
        format!(
            "accepted {}, synced {}, sealed {}, committed {}, trimmed {}",
            f.accepted, f.synced, f.sealed, f.committed, f.trimmed
        )
    });
    let cache = vdisk.cache.as_ref().map(|c| {
        format!(
            "{} in memory, {} on SSD; hits: memory {}, SSD {}; misses {}",
            human(c.memory_bytes),
            human(c.ssd_bytes),
            c.memory_hits,
            c.ssd_hits,
            c.misses
        )
    });
    let scrub = vdisk
        .scrub
        .filter(|s| s.running)
        .map(|s| format!("running: copied {} of {}", human(s.copied_bytes), human(s.to_copy_bytes)));
    let clone_of = vdisk.clone_of.as_ref().map(|of| format!("{}@{}", of.vdisk, of.snapshot_id));
    pairs(vec![
        ("name", Some(format!("{}/{}", vdisk.vpool, vdisk.name))),
        ("id", Some(vdisk.id.clone())),
        ("state", Some(vdisk_state(vdisk.state).to_string())),
        ("reason", vdisk.reason.clone()),
        ("size", Some(both(vdisk.size_bytes))),
        ("stored", vdisk.stored_bytes.map(both)),
        ("live", vdisk.live_bytes.map(both)),
        ("of snapshots", vdisk.snapshot_bytes.filter(|n| *n > 0).map(both)),
        ("stored/live", vdisk.space_amplification.map(|n| format!("{n:.2}"))),
        ("dirty", vdisk.dirty_bytes.map(both)),
        ("sco size", Some(human(vdisk.sco_size_bytes.into()))),
        ("epoch", Some(vdisk.epoch.to_string())),
        ("frontiers", frontiers),
        ("dtl", Some(vdisk.dtl.mode.clone())),
        ("owner", Some(vdisk.owner.clone())),
        ("moves to its clients", vdisk.auto_migrate.map(|on| if on { "yes" } else { "no" }.to_string())),
        ("in use by", Some(format!("{} connections", vdisk.in_use))),
        ("limits", vdisk.qos.as_ref().map(super::qos::line)),
        ("scrub", scrub),
        ("read cache", cache),
        ("cache quota", vdisk.cache_quota_bytes.map(both)),
        ("read only", vdisk.read_only.then(|| "yes".to_string())),
        ("template", vdisk.template.then(|| "yes".to_string())),
        ("clone of", clone_of),
        ("snapshots", vdisk.snapshots.filter(|n| *n > 0).map(|n| n.to_string())),
        ("nbd", vdisk.nbd_uri.clone()),
        ("nbd, local", vdisk.nbd_unix_uri.clone()),
        ("edge", Some(vdisk.edge.join(", ")).filter(|addresses| !addresses.is_empty())),
    ])
}

/// `vdisk snapshots`, and those that `vdisk snapshot --with` took.
pub fn snapshots(items: &[Snapshot]) -> String {
    let mut table = table(&["SNAPSHOT", "SIZE", "TAKEN", "ON BACKEND", "FLAGS", "CLONES"]);
    for s in items {
        table.add_row([
            format!("{}@{}", s.vdisk, s.name),
            human(s.size_bytes),
            volumedriver::inspect::time(s.created_at),
            if s.on_backend { "yes" } else { "not yet" }.to_string(),
            flags(s),
            s.clones.len().to_string(),
        ]);
    }
    align_right(&mut table, &[1, 5]);
    text(&table)
}

fn flags(s: &Snapshot) -> String {
    let flags = [("consistent", s.consistent), ("sticky", s.sticky)];
    flags.iter().filter(|(_, on)| *on).map(|(flag, _)| *flag).collect::<Vec<_>>().join(" ")
}

/// `vdisk snapshot-show`, and what the other commands left.
pub fn snapshot(s: &Snapshot) -> String {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    pairs(vec![
        ("name", Some(format!("{}@{}", s.vdisk, s.name))),
        ("id", Some(s.id.clone())),
        ("size", Some(both(s.size_bytes))),
        ("taken", Some(volumedriver::inspect::time(s.created_at))),
        ("on backend", Some(if s.on_backend { "yes" } else { "not yet" }.to_string())),
        ("flags", some(flags(s))),
        ("metadata", some(s.metadata.clone())),
        ("clones", some(s.clones.join(", "))),
    ])
}

/// `health`.
pub fn health(health: &Health) -> String {
    let word = |level: HealthLevel| match level {
        HealthLevel::Ok => "ok",
        HealthLevel::Warning => "warning",
        HealthLevel::Error => "error",
    };
    let mut out = format!("{}\n", word(health.level));
    for item in &health.items {
        out.push_str(&format!("{:7}  {}: {}\n", word(item.level), item.subject, item.reason));
    }
    out
}
