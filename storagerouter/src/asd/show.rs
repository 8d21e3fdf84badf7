//! What a daemon says of its disk, for people and for programs.

use crate::size::human;
use anyhow::Result;
use common::osd::{LatencyStatus, OsdState, OsdStatus, shown};
use serde_json::json;

/// For programs.
pub fn json(s: &OsdStatus) -> Result<String> {
    let damaged = s.damaged.iter().map(|d| json!({ "key": shown(&d.key), "why": d.why }));
    let counters: serde_json::Map<_, _> =
        s.counters.iter().map(|(name, n)| (name.clone(), json!(n))).collect();
    Ok(serde_json::to_string_pretty(&json!({
        "id": s.id,
        "claimed_by": s.claimed_by,
        "state": s.state,
        "space": s.space,
        "keys": s.keys,
        "bytes": s.bytes,
        "damaged_keys": s.damaged_keys,
        "damaged": damaged.collect::<Vec<_>>(),
        "scrub": s.scrub,
        "apply": s.apply,
        "get": s.get,
        "counters": counters,
    }))?)
}

/// For people.
pub fn text(s: &OsdStatus) -> String {
    let state = match &s.state {
        OsdState::Serving if s.space.full => "serving; full, sets are refused".to_owned(),
        OsdState::Serving => "serving".to_owned(),
        OsdState::ReadOnly(why) => format!("READ ONLY, its disk failed: {why}"),
    };
    let time = |l: &LatencyStatus| {
        format!(
            "{} of them, half within {} us, 99 of 100 within {} us, longest {} us",
            l.count, l.p50, l.p99, l.max
        )
    };
    let space = &s.space;
    let mut lines = vec![
        ("id", s.id.to_string()),
        ("claimed by", s.claimed_by.map_or_else(|| "nobody".to_owned(), |b| b.to_string())),
        ("state", state),
        ("capacity", human(space.capacity)),
        ("  values in segments", human(space.live)),
        ("  deleted or lost to rounding", human(space.dead)),
        ("  begun segments", human(space.open)),
        ("  table", human(space.table)),
        ("  kept for its own work", human(space.reserved)),
        ("  free", human(space.free)),
        ("keys", format!("{} with {}", s.keys, human(s.bytes))),
        ("damaged", s.damaged_keys.to_string()),
        (
            "scrub",
            format!(
                "{} rounds, {}.{} % of this one ({} values, {})",
                s.scrub.rounds,
                s.scrub.done_permille / 10,
                s.scrub.done_permille % 10,
                s.scrub.keys,
                human(s.scrub.bytes)
            ),
        ),
        ("changes", time(&s.apply)),
        ("reads", time(&s.get)),
    ];
    lines.extend(s.damaged.iter().map(|d| ("  damaged", format!("{}: {}", shown(&d.key), d.why))));
    lines.into_iter().map(|(name, value)| format!("{name:<30} {value}\n")).collect()
}
