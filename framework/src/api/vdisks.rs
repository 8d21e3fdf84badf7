//! vDisks.

use super::State;
use super::extract::{Body, Names, Params};
use super::problem::Answer;
use super::qos;
use crate::types::{
    CacheUse, CloneOf, Drain, Dtl, DtlLoss, DtlPatch, Frontiers, Problem, ScrubQuery, ScrubState, Scrubbed,
    Vdisk, VdiskCreate, VdiskDelete, VdiskFilter, VdiskList, VdiskPatch, VdiskState,
};
use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use common::{Error, Result};
use objectrouter::{CreateVdisk, DtlMode, DtlNeeded, DtlOnFailure, DtlWish, Effort, VdiskInfo};
use std::time::Duration;

/// Seconds that a drain or a scrub waits unless said otherwise, and the most that it does.
const WAIT: u64 = 60;
const MAX_WAIT: u64 = 3600;

/// The path in a query: everything that could mean something there is escaped.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(byte as char)
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// How long to wait; `None` for not at all.
fn waits(seconds: Option<u64>) -> common::Result<Option<Duration>> {
    match seconds.unwrap_or(WAIT) {
        0 => Ok(None),
        seconds @ ..=MAX_WAIT => Ok(Some(Duration::from_secs(seconds))),
        seconds => Err(Error::invalid(format!("query: 'wait' is {seconds} seconds, at most {MAX_WAIT}"))),
    }
}

/// A vDisk in the API's words.
pub(super) fn shown(state: &State, info: VdiskInfo) -> Vdisk {
    // Names hold nothing that needs escaping in a URI.
    let nbd_uri = state.nbd_uri.as_ref().map(|template| {
        template.replace("{vpool}", info.vpool.as_str()).replace("{vdisk}", info.name.as_str())
    });
    let nbd_unix_uri = state
        .nbd_unix
        .as_ref()
        .map(|socket| format!("nbd+unix:///{}/{}?socket={}", info.vpool, info.name, escaped(socket)));
    let status = info.status.as_ref();
    let clone_of = info.parent.map(|parent| {
        // In the same vPool; its id when it is not known here.
        let id = parent.volume.to_string();
        let known = state.router.vdisk(info.vpool.as_str(), &id).map(|vdisk| vdisk.name.to_string());
        CloneOf { vdisk: known.unwrap_or(id), snapshot_id: format!("{:032x}", parent.snapshot.0) }
    });
    let dtl = dtl(&info);
    Vdisk {
        name: info.name.to_string(),
        vpool: info.vpool.to_string(),
        id: info.id.to_string(),
        size_bytes: info.size,
        stored_bytes: status.map(|s| s.stored_bytes),
        live_bytes: status.map(|s| s.live_bytes),
        snapshot_bytes: status.map(|s| s.scrub.snapshot_bytes),
        space_amplification: status.and_then(|s| s.space_amplification()),
        dirty_bytes: status.map(|s| s.dirty_bytes),
        epoch: info.epoch.0,
        sco_size_bytes: info.sco_size,
        frontiers: status.map(|s| Frontiers {
            accepted: s.frontiers.accepted.0,
            synced: s.frontiers.synced.0,
            sealed: s.frontiers.sealed.0,
            committed: s.frontiers.committed.0,
            trimmed: s.frontiers.trimmed.0,
        }),
        state: match info.state {
            objectrouter::VdiskState::Serving => VdiskState::Serving,
            objectrouter::VdiskState::Degraded => VdiskState::Degraded,
            objectrouter::VdiskState::Stopped => VdiskState::Stopped,
            objectrouter::VdiskState::Opening => VdiskState::Opening,
            objectrouter::VdiskState::Failed => VdiskState::Failed,
            objectrouter::VdiskState::Creating => VdiskState::Creating,
            objectrouter::VdiskState::Deleting => VdiskState::Deleting,
            objectrouter::VdiskState::Elsewhere => VdiskState::Elsewhere,
            objectrouter::VdiskState::Orphaned => VdiskState::Orphaned,
        },
        reason: info.reason,
        in_use: info.clients,
        read_only: info.read_only,
        template: info.template,
        clone_of,
        snapshots: status.map(|s| s.snapshots as u64),
        qos: info.qos.map(qos::shown),
        cache_quota_bytes: info.cache_quota,
        cache: status.map(|s| CacheUse {
            memory_bytes: s.cache.memory_bytes,
            ssd_bytes: s.cache.ssd_bytes,
            memory_hits: s.cache_hits.memory,
            ssd_hits: s.cache_hits.ssd,
            misses: s.cache_hits.missed,
        }),
        scrub: status.map(|s| ScrubState {
            running: s.scrub.running,
            to_copy_bytes: s.scrub.to_copy,
            copied_bytes: s.scrub.copied,
            deleted_scos: s.scrub.deleted_scos,
            relocated_bytes: s.scrub.relocated_bytes,
        }),
        dtl,
        auto_migrate: info.auto_migrate,
        owner: if info.owner == *state.router.node() { "local".into() } else { info.owner.to_string() },
        nbd_uri,
        nbd_unix_uri,
        edge: state.edge.clone(),
    }
}

fn one_of<T: Copy>(key: &str, given: Option<String>, known: &[(&str, T)]) -> Result<Option<T>> {
    let Some(given) = given else { return Ok(None) };
    let found = known.iter().find(|(name, _)| *name == given);
    found.map(|(_, value)| Some(*value)).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        Error::invalid(format!("{key} '{}': choose {}", given.escape_debug(), names.join(" or ")))
    })
}

fn dtl_wish(patch: DtlPatch) -> Result<DtlWish> {
    let modes = [("none", DtlMode::None), ("async", DtlMode::Async), ("sync", DtlMode::Sync)];
    let failures = [("degrade", DtlOnFailure::Degrade), ("block", DtlOnFailure::Block)];
    Ok(DtlWish {
        mode: one_of("dtl.mode", patch.mode, &modes)?,
        peers: patch.peers,
        needed: one_of("dtl.needed", patch.needed, &[("all", DtlNeeded::All), ("one", DtlNeeded::One)])?,
        on_failure: one_of("dtl.on_failure", patch.on_failure, &failures)?,
    })
}

fn dtl(info: &VdiskInfo) -> Dtl {
    let (config, loss) = (&info.dtl, |loss: &objectrouter::Loss| DtlLoss {
        epoch: loss.epoch.0,
        after_lsn: loss.after.0,
        up_to_lsn: loss.up_to.map(|lsn| lsn.0),
    });
    Dtl {
        mode: match config.mode {
            objectrouter::DtlMode::Sync => "sync",
            objectrouter::DtlMode::Async => "async",
            _ => "none",
        }
        .into(),
        status: match config.status {
            objectrouter::DtlStatus::InSync => "in_sync",
            objectrouter::DtlStatus::CatchingUp => "catching_up",
            objectrouter::DtlStatus::Degraded => "degraded",
        }
        .into(),
        peers: config.peers.iter().map(|peer| peer.node.to_string()).collect(),
        wanted_peers: config.wanted,
        losses: info.losses.iter().map(loss).collect(),
    }
}

/// All vDisks, or those of one vPool.
#[utoipa::path(get, path = "/api/v1/vdisks", tag = "vdisks", params(VdiskFilter), responses(
    (status = 200, description = "The vDisks, in order of vPool and name", body = VdiskList),
    (status = 404, description = "There is no such vPool", body = Problem),
))]
pub(super) async fn list(
    extract::State(state): extract::State<State>,
    Params(filter): Params<VdiskFilter>,
) -> Answer<Json<VdiskList>> {
    let vpool = filter.vpool.map(|name| state.router.vpool(&name)).transpose()?.map(|vpool| vpool.name);
    let wanted = |vdisk: &VdiskInfo| vpool.as_ref().is_none_or(|name| vdisk.vpool == *name);
    let vdisks = state.router.vdisks().into_iter().filter(wanted);
    Ok(Json(VdiskList { items: vdisks.map(|vdisk| shown(&state, vdisk)).collect() }))
}

/// Make a vDisk. It serves at once.
#[utoipa::path(post, path = "/api/v1/vdisks", tag = "vdisks", request_body = VdiskCreate, responses(
    (status = 201, description = "The new vDisk", body = Vdisk),
    (status = 400, description = "The request can't be right", body = Problem),
    (status = 404, description = "There is no such vPool", body = Problem),
    (status = 409, description = "The name is taken", body = Problem),
    (status = 503, description = "The object store does not answer", body = Problem),
))]
pub(super) async fn create(
    extract::State(state): extract::State<State>,
    Body(body): Body<VdiskCreate>,
) -> Answer<impl IntoResponse> {
    let spec = CreateVdisk {
        vpool: body.vpool,
        name: body.name.parse()?,
        size: body.size_bytes,
        sco_size: body.sco_size_bytes,
    };
    let vdisk = shown(&state, state.router.create_vdisk(spec).await?);
    let location = format!("/api/v1/vdisks/{}/{}", vdisk.vpool, vdisk.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(vdisk)))
}

/// One vDisk.
#[utoipa::path(get, path = "/api/v1/vdisks/{vpool}/{name}", tag = "vdisks",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The vDisk", body = Vdisk),
    (status = 404, description = "There is no such vDisk", body = Problem),
))]
pub(super) async fn show(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
) -> Answer<Json<Vdisk>> {
    Ok(Json(shown(&state, state.router.vdisk(&vpool, &name)?)))
}

/// Change a vDisk, online: grow it, make it read-only or writable, limit it. Clients that connect from then on see
/// its size and whether they may write; limits hold for all, at once.
#[utoipa::path(patch, path = "/api/v1/vdisks/{vpool}/{name}", tag = "vdisks", request_body = VdiskPatch,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The vDisk as it is now", body = Vdisk),
    (status = 400, description = "Not a valid size or limit, or nothing to change", body = Problem),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 501, description = "A vDisk can't shrink", body = Problem),
    (status = 503, description = "The vDisk is not open", body = Problem),
))]
pub(super) async fn change(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Body(body): Body<VdiskPatch>,
) -> Answer<Json<Vdisk>> {
    let mut info = None;
    // A limit that can't be right is refused before anything is changed.
    let limits = body.qos.map(qos::asked).transpose()?;
    let dtl = body.dtl.map(dtl_wish).transpose()?;
    let follows = [("on", Some(true)), ("off", Some(false)), ("default", None)];
    let follows = one_of("auto_migrate", body.auto_migrate, &follows)?;
    let quota = body.cache_quota_bytes.map(|bytes| Some(bytes).filter(|bytes| *bytes > 0));
    objectrouter::check_cache_quota(quota.flatten())?;
    if let Some(size) = body.size_bytes {
        info = Some(state.router.resize_vdisk(&vpool, &name, size).await?);
    }
    if let Some(read_only) = body.read_only {
        info = Some(state.router.set_read_only(&vpool, &name, read_only).await?);
    }
    if let Some(limits) = limits {
        info = Some(state.router.set_qos(&vpool, &name, limits).await?);
    }
    if let Some(quota) = quota {
        info = Some(state.router.set_cache_quota(&vpool, &name, quota).await?);
    }
    if let Some(follows) = follows {
        info = Some(state.router.set_auto_migrate(&vpool, &name, follows).await?);
    }
    if let Some(wish) = dtl {
        info = Some(state.router.set_dtl(&vpool, &name, wish).await?);
    }
    match info {
        Some(info) => Ok(Json(shown(&state, info))),
        None => Err(Error::invalid(
            "nothing to change: give 'size_bytes', 'read_only', 'qos', 'cache_quota_bytes', 'auto_migrate' or 'dtl'",
        )
        .into()),
    }
}

/// Delete a vDisk with all of its data.
#[utoipa::path(delete, path = "/api/v1/vdisks/{vpool}/{name}", tag = "vdisks",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        VdiskDelete),
    responses(
    (status = 204, description = "It is gone"),
    (status = 403, description = "It is in use", body = Problem),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 503, description = "The object store does not answer", body = Problem),
))]
pub(super) async fn delete(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Params(query): Params<VdiskDelete>,
) -> Answer<StatusCode> {
    state.router.delete_vdisk(&vpool, &name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Seal and upload everything that was accepted so far.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/drain", tag = "vdisks",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        Drain),
    responses(
    (status = 200, description = "It is all on the object store", body = Vdisk),
    (status = 202, description = "It has begun, and was not waited for", body = Vdisk),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 503, description = "Not done in time; it goes on by itself", body = Problem),
))]
pub(super) async fn drain(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Params(query): Params<Drain>,
) -> Answer<impl IntoResponse> {
    let wait = waits(query.wait)?;
    let info = state.router.drain_vdisk(&vpool, &name, wait).await?;
    let status = if wait.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(shown(&state, info))))
}

/// Give back the space of what neither the head nor a snapshot reads any more, all of it. Small garbage goes by
/// itself in time; this does not wait for it to be worth the work.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/scrub", tag = "vdisks",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        ScrubQuery),
    responses(
    (status = 200, description = "It is done", body = Scrubbed),
    (status = 202, description = "It has begun, and was not waited for; the vDisk tells how far it is", body = Scrubbed),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 503, description = "Not done in time; it goes on by itself", body = Problem),
))]
pub(super) async fn scrub(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Params(query): Params<ScrubQuery>,
) -> Answer<impl IntoResponse> {
    let wait = waits(query.wait)?;
    let effort = if query.merge { Effort::Merge } else { Effort::Full };
    let (info, done) = state.router.scrub_vdisk(&vpool, &name, effort, wait).await?;
    let status = if wait.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let scrubbed = Scrubbed {
        vdisk: shown(&state, info),
        deleted_scos: done.scos,
        copied_bytes: done.copied,
        replaced_tlogs: done.tlogs,
    };
    Ok((status, Json(scrubbed)))
}
