//! `router`, and vDisks that go from one router to another.

use super::commands::{NOTHING, done};
use super::http::{Api, escape};
use super::show;
use super::tables::{pairs, table, text};
use crate::cli::routers::{Router as Words, RouterAction, Setting};
use anyhow::Result;
use framework::types::{DtlPatch, Router, RouterList, VdiskPatch};
use hyper::Method;

/// `router ...`.
pub async fn run(words: &Words) -> Result<()> {
    let api = Api::new(&words.api)?;
    let output = words.api.output;
    let path = |name: &str| format!("/api/v1/routers/{}", escape(name));
    match &words.action {
        RouterAction::List => {
            let list: RouterList = api.get("/api/v1/routers").await?;
            show(output, &list, |list| routers(&list.items))
        }
        RouterAction::Show { name } => show(output, &api.get::<Router>(&path(name)).await?, router),
        RouterAction::Drain { name } => {
            let now: Router = api.call(Method::POST, &format!("{}/drain", path(name)), NOTHING).await?;
            show(output, &now, router)
        }
        RouterAction::Resume { name } => {
            let now: Router = api.call(Method::POST, &format!("{}/resume", path(name)), NOTHING).await?;
            show(output, &now, router)
        }
        RouterAction::Remove { name } => {
            api.request(Method::DELETE, &path(name), NOTHING).await?;
            done(output, &format!("storage router {name} forgotten"))
        }
    }
}

/// What is asked of the API for these settings.
pub fn patch(settings: &[Setting]) -> VdiskPatch {
    let (mut patch, mut auto_migrate) = (DtlPatch::default(), None);
    for setting in settings {
        match setting {
            Setting::Mode(mode) => patch.mode = Some(mode.clone()),
            Setting::Peers(peers) => patch.peers = Some(*peers),
            Setting::Needed(needed) => patch.needed = Some(needed.clone()),
            Setting::OnFailure(what) => patch.on_failure = Some(what.clone()),
            Setting::AutoMigrate(how) => auto_migrate = Some(how.clone()),
        }
    }
    let dtl = (patch != DtlPatch::default()).then_some(patch);
    VdiskPatch { dtl, auto_migrate, ..VdiskPatch::default() }
}

fn state(router: &Router) -> &'static str {
    match (router.there, router.draining) {
        (true, false) => "serving",
        (true, true) => "draining",
        (false, false) => "away",
        (false, true) => "away, draining",
    }
}

fn routers(routers: &[Router]) -> String {
    let mut rows = table(&["NAME", "STATE", "VDISKS", "EDGE", "API"]);
    for router in routers {
        rows.add_row(vec![
            if router.this { format!("{} *", router.name) } else { router.name.clone() },
            state(router).to_string(),
            router.vdisks.to_string(),
            router.edge.first().cloned().unwrap_or_default(),
            router.api.clone().unwrap_or_default(),
        ]);
    }
    text(&rows)
}

fn router(router: &Router) -> String {
    let list = |items: &[String]| (!items.is_empty()).then(|| items.join(", "));
    pairs(vec![
        ("name", Some(router.name.clone())),
        ("state", Some(state(router).to_string())),
        ("vdisks", Some(router.vdisks.to_string())),
        ("edge", list(&router.edge)),
        ("dtl", router.dtl.clone()),
        ("api", router.api.clone()),
        ("domains", list(&router.domains)),
    ])
}
