//! What each client command asks, and how its answer is shown.

use super::http::{Api, escape};
use super::{backup, print, qos, routers, scrub, show, snapshots, tables};
use crate::cli::{self, BackendArgs, BackendKind, Output, VdiskAction, VpoolAction};
use crate::failure::{Exit, Failure};
use anyhow::Result;
use framework::types::{
    Health, HealthLevel, LogLevel, Vdisk, VdiskCreate, VdiskList, VdiskMove, VdiskPatch, Version, Vpool,
    VpoolCreate, VpoolList,
};
use hyper::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The body of an answer that has none.
pub(super) const NOTHING: Option<&()> = None;

/// `vpool ...`.
pub async fn vpool(args: &cli::Vpool) -> Result<()> {
    let api = Api::new(&args.api)?;
    let output = args.api.output;
    match &args.action {
        VpoolAction::Create(create) => {
            let body = VpoolCreate {
                name: name(&create.name)?,
                backend: backend(&create.backend)?,
                cluster_size_bytes: narrow(create.cluster_size, "--cluster-size")?,
                adopt: create.adopt,
            };
            // Probing a far store and reading every Manifest of an adopted vPool takes its time.
            let api = api.with_timeout(Duration::from_secs(600));
            let vpool: Vpool = api.call(Method::POST, "/api/v1/vpools", Some(&body)).await?;
            show(output, &vpool, tables::vpool)
        }
        VpoolAction::List => {
            let list: VpoolList = api.get("/api/v1/vpools").await?;
            show(output, &list, |list| tables::vpools(&list.items))
        }
        VpoolAction::Show { name } => {
            let vpool: Vpool = api.get(&vpool_path(name)?).await?;
            show(output, &vpool, tables::vpool)
        }
        VpoolAction::Delete { name, detach, force } => {
            let path = format!("{}?detach={detach}&force={force}", vpool_path(name)?);
            api.with_timeout(Duration::from_secs(600)).request(Method::DELETE, &path, NOTHING).await?;
            done(output, &format!("vPool {name} {}", if *detach { "detached" } else { "deleted" }))
        }
    }
}

/// `vdisk ...`.
pub async fn vdisk(args: &cli::Vdisk) -> Result<()> {
    let api = Api::new(&args.api)?;
    let output = args.api.output;
    match &args.action {
        VdiskAction::Create { name: disk, vpool, size, sco_size } => {
            let body = VdiskCreate {
                name: name(disk)?,
                vpool: vpool.clone(),
                size_bytes: *size,
                sco_size_bytes: narrow(*sco_size, "--sco-size")?,
            };
            let vdisk: Vdisk = api.call(Method::POST, "/api/v1/vdisks", Some(&body)).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::List { vpool } => {
            let filter = vpool.as_ref().map(|vpool| format!("?vpool={}", escape(vpool))).unwrap_or_default();
            let list: VdiskList = api.get(&format!("/api/v1/vdisks{filter}")).await?;
            show(output, &list, |list| tables::vdisks(&list.items))
        }
        VdiskAction::Show { vdisk } => {
            let vdisk: Vdisk = api.get(&vdisk_path(&api, vdisk).await?).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::Resize { vdisk, size } => {
            let path = vdisk_path(&api, vdisk).await?;
            let body = VdiskPatch { size_bytes: Some(*size), ..VdiskPatch::default() };
            let vdisk: Vdisk = api.call(Method::PATCH, &path, Some(&body)).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::Set { vdisk, read_only, cache_quota, settings } => {
            let path = vdisk_path(&api, vdisk).await?;
            let (read_only, cache_quota_bytes) = (*read_only, *cache_quota);
            let body = VdiskPatch { read_only, cache_quota_bytes, ..routers::patch(settings) };
            let vdisk: Vdisk = api.call(Method::PATCH, &path, Some(&body)).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::Move { vdisk, to } => {
            let path = format!("{}/move", vdisk_path(&api, vdisk).await?);
            let api = api.with_timeout(Duration::from_secs(900));
            let vdisk: Vdisk = api.call(Method::POST, &path, Some(&VdiskMove { to: to.clone() })).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::Force { vdisk } => {
            let path = format!("{}/force", vdisk_path(&api, vdisk).await?);
            let vdisk: Vdisk = api.call(Method::POST, &path, NOTHING).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::Qos(flags) => {
            qos::run(&api, output, &vdisk_path(&api, &flags.vdisk).await?, flags).await
        }
        VdiskAction::Delete { vdisk, force } => {
            let path = vdisk_path(&api, vdisk).await?;
            let api = api.with_timeout(Duration::from_secs(600));
            api.request(Method::DELETE, &format!("{path}?force={force}"), NOTHING).await?;
            done(output, &format!("vDisk {vdisk} deleted"))
        }
        VdiskAction::Drain { vdisk, wait } => {
            let path = vdisk_path(&api, vdisk).await?;
            let api = api.with_timeout(Duration::from_secs(wait.saturating_add(60)));
            let vdisk: Vdisk = api.call(Method::POST, &format!("{path}/drain?wait={wait}"), NOTHING).await?;
            show(output, &vdisk, tables::vdisk)
        }
        VdiskAction::Scrub { vdisk, merge, wait } => scrub::run(api, output, vdisk, *merge, *wait).await,
        VdiskAction::Export(args) => backup::export(&api, args).await,
        VdiskAction::Import(args) => backup::import(&api, output, args).await,
        VdiskAction::Snapshots(action) => snapshots::run(api, output, action).await,
    }
}

/// `health`.
pub async fn health(args: &cli::Plain) -> Result<()> {
    let health: Health = Api::new(&args.api)?.get("/api/v1/health").await?;
    show(args.api.output, &health, tables::health)?;
    if health.level == HealthLevel::Error {
        return Err(Failure::error(Exit::Failure, "something does not serve"));
    }
    Ok(())
}

/// `log-level`.
pub async fn log_level(args: &cli::LogLevel) -> Result<()> {
    let api = Api::new(&args.api)?;
    let level: LogLevel = match &args.filter {
        None => api.get("/api/v1/log-level").await?,
        Some(filter) => {
            let body = LogLevel { filter: filter.clone() };
            api.call(Method::PUT, "/api/v1/log-level", Some(&body)).await?
        }
    };
    show(args.api.output, &level, |level| level.filter.clone())
}

/// `version`.
pub async fn version(args: &cli::Plain) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let router: Option<Version> =
        Api::new(&args.api)?.with_timeout(Duration::from_secs(5)).get("/api/v1/version").await.ok();
    let answer = json!({ "version": own, "format": crate::datadir::FORMAT, "router": router });
    show(args.api.output, &answer, |_| {
        let running = match &router {
            Some(router) => format!("{} (node {})", router.version, router.node),
            None => format!("none answers at {}", args.api.api),
        };
        format!("storagerouter {own}\nrouter        {running}\n")
    })
}

pub(super) fn done(output: Output, text: &str) -> Result<()> {
    match output {
        // The API answers a deletion with nothing.
        Output::Json => Ok(()),
        Output::Table => print(text),
    }
}

/// Checks a name before it is sent: the reply to a slash would only be a "not found".
pub(super) fn name(text: &str) -> Result<String> {
    text.parse::<common::Name>()?;
    Ok(text.to_string())
}

fn narrow(size: Option<u64>, flag: &str) -> Result<Option<u32>> {
    size.map(|bytes| {
        u32::try_from(bytes)
            .map_err(|_| Failure::usage(format!("{flag} {} is too large", crate::size::human(bytes))))
    })
    .transpose()
}

fn vpool_path(text: &str) -> Result<String> {
    Ok(format!("/api/v1/vpools/{}", escape(&name(text)?)))
}

/// The path of a vDisk. A name alone must be unique: then the API says which vPool has it.
pub(super) async fn vdisk_path(api: &Api, text: &str) -> Result<String> {
    let path = |vpool: &str, disk: &str| format!("/api/v1/vdisks/{}/{}", escape(vpool), escape(disk));
    if let Some((vpool, disk)) = text.split_once('/') {
        return Ok(path(&name(vpool)?, &name(disk)?));
    }
    name(text)?;
    let list: VdiskList = api.get("/api/v1/vdisks").await?;
    let owners: Vec<&str> = list.items.iter().filter(|d| d.name == text).map(|d| d.vpool.as_str()).collect();
    match owners.as_slice() {
        [vpool] => Ok(path(vpool, text)),
        [] => Err(Failure::error(
            Exit::NotFound,
            format!("there is no vDisk '{text}': 'storagerouter vdisk list' shows what there is"),
        )),
        several => Err(Failure::error(
            Exit::Conflict,
            format!("several vPools have a vDisk '{text}': say which, as in {}/{text}", several[0]),
        )),
    }
}

/// Paths travel to the router, whose working directory is another one.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::usage(format!("path '{}': {e}", path.display())))
}

/// The backend as the API wants it: `{"kind": ..., ...}`.
pub fn backend(args: &BackendArgs) -> Result<Value> {
    let missing = |flag: &str, kind: &str| Failure::usage(format!("--backend {kind} needs {flag}"));
    let s3_flags = [
        ("--endpoint", args.endpoint.is_some()),
        ("--bucket", args.bucket.is_some()),
        ("--prefix", args.prefix.is_some()),
        ("--region", args.region.is_some()),
        ("--credentials-file", args.credentials_file.is_some()),
        ("--ca-file", args.ca_file.is_some()),
        ("--single-writer", args.single_writer),
    ];
    match args.backend {
        None => Err(Failure::usage(
            "say which object store: --backend directory --path DIR, or --backend s3 --endpoint URL --bucket NAME",
        )),
        Some(BackendKind::Directory) => {
            if let Some((flag, _)) = s3_flags.iter().find(|(_, given)| *given) {
                return Err(Failure::usage(format!(
                    "{flag} is for --backend s3, not for --backend directory"
                )));
            }
            let path = args.path.as_deref().ok_or_else(|| missing("--path DIR", "directory"))?;
            Ok(json!({ "kind": "directory", "path": absolute(path)? }))
        }
        Some(BackendKind::S3) => {
            if args.path.is_some() {
                return Err(Failure::usage("--path is for --backend directory, not for --backend s3"));
            }
            let mut spec = json!({
                "kind": "s3",
                "bucket": args.bucket.as_deref().ok_or_else(|| missing("--bucket NAME", "s3"))?,
            });
            let optional = [
                ("endpoint", args.endpoint.clone().map(Value::from)),
                ("prefix", args.prefix.clone().map(Value::from)),
                ("region", args.region.clone().map(Value::from)),
                (
                    "credentials_file",
                    args.credentials_file.as_deref().map(|p| absolute(p).map(|p| json!(p))).transpose()?,
                ),
                ("ca_file", args.ca_file.as_deref().map(|p| absolute(p).map(|p| json!(p))).transpose()?),
                ("single_writer", args.single_writer.then_some(Value::Bool(true))),
            ];
            for (key, value) in optional {
                if let Some(value) = value {
                    spec[key] = value;
                }
            }
            Ok(spec)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_of_flags_is_the_json_of_the_api() {
        let directory = BackendArgs {
            backend: Some(BackendKind::Directory),
            path: Some("/srv/x".into()),
            ..BackendArgs::default()
        };
        assert_eq!(backend(&directory).unwrap(), json!({ "kind": "directory", "path": "/srv/x" }));
        let wrong = BackendArgs { bucket: Some("b".into()), ..directory };
        assert!(backend(&wrong).unwrap_err().to_string().contains("--bucket"));
        let s3 = BackendArgs {
            backend: Some(BackendKind::S3),
            endpoint: Some("http://e".into()),
            ..BackendArgs::default()
        };
        assert!(backend(&s3).unwrap_err().to_string().contains("--bucket NAME"));
    }

    #[test]
    fn a_flagged_backend_is_one_that_the_object_stores_understand() {
        for args in [
            BackendArgs {
                backend: Some(BackendKind::Directory),
                path: Some("/srv/x".into()),
                ..Default::default()
            },
            BackendArgs {
                backend: Some(BackendKind::S3),
                endpoint: Some("https://e".into()),
                bucket: Some("b".into()),
                prefix: Some("p".into()),
                region: Some("r".into()),
                credentials_file: Some("/c".into()),
                ca_file: Some("/ca".into()),
                single_writer: true,
                ..Default::default()
            },
        ] {
            let spec = backend(&args).unwrap();
            serde_json::from_value::<alba_proxy::BackendSpec>(spec.clone())
                .unwrap_or_else(|e| panic!("{spec}: {e}"));
        }
    }
}
