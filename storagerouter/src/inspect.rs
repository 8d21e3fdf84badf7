//! `inspect` and `fsck`: look at stored bytes without a router, or beside one that runs.

use crate::cli::{self, BackendArgs, Output, RouterArgs};
use crate::client::commands::backend;
use crate::client::http::{Api, escape};
use crate::client::print;
use crate::cluster;
use crate::datadir::DataDir;
use crate::failure::{Exit, Failure};
use crate::size::human;
use crate::stores;
use anyhow::{Context, Result};
use bytes::Bytes;
use common::clock::SystemClock;
use common::{Clock, Kv, Name, ObjectStore, VolumeId};
use framework::types::{Vdisk, Vpool};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use volumedriver::format::{keys, manifest};
use volumedriver::{Pool, fsck};

/// The largest local file that is read: more than any segment or object may have.
const LARGEST_FILE: u64 = 4 << 30;

/// `inspect`.
pub async fn inspect(args: &cli::Inspect) -> Result<()> {
    let bytes = match (&args.vpool, args.backend.backend) {
        (None, None) => read_file(Path::new(&args.what))?,
        (Some(vpool), _) => {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            let source = Source::of(&args.router, &clock)?;
            open(source.backend(&vpool.parse()?).await?, &clock).await?.get(&args.what).await?
        }
        (None, Some(_)) => {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            open(backend(&args.backend)?, &clock).await?.get(&args.what).await?
        }
    };
    print(&volumedriver::inspect::describe(&args.what, &bytes)?)
}

fn read_file(path: &Path) -> Result<Bytes> {
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::error(
                Exit::NotFound,
                format!(
                    "there is no file {shown}; for a key on an object store add --vpool NAME, or --backend"
                ),
            ));
        }
        Err(e) => return Err(e).with_context(|| format!("reading {shown}")),
    };
    if !meta.is_file() || meta.len() > LARGEST_FILE {
        return Err(Failure::usage(format!("{shown} is not a file of the storage router")));
    }
    Ok(std::fs::read(path).with_context(|| format!("reading {shown}"))?.into())
}

/// `fsck`.
pub async fn fsck(args: &cli::Fsck) -> Result<()> {
    let Some((vpool, vdisk)) = args.vdisk.split_once('/') else {
        return Err(Failure::usage(format!("'{}' names no vPool: write VPOOL/VDISK", args.vdisk)));
    };
    let (vpool, vdisk): (Name, Name) = (vpool.parse()?, vdisk.parse()?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (store, volume) = if args.backend.backend.is_some() {
        let store = open(backend(&args.backend)?, &clock).await?;
        let volume = find(&*store, &vdisk).await?;
        (store, volume)
    } else {
        check_no_backend_flags(&args.backend)?;
        let source = Source::of(&args.router, &clock)?;
        let volume = source.volume(&vpool, &vdisk).await?;
        (open(source.backend(&vpool).await?, &clock).await?, volume)
    };
    let pool = Pool::open(store).await?;
    let report = fsck::check(&pool, volume, &mut progress).await?;
    match args.router.api.output {
        Output::Table => print(&tell(&report))?,
        Output::Json => print(&serde_json::to_string_pretty(&json!({
            "vdisk": format!("{vpool}/{vdisk}"),
            "id": volume.to_string(),
            "manifest": report.manifest,
            "size_bytes": report.size,
            "objects": report.objects,
            "object_bytes": report.bytes,
            "clusters_verified": report.clusters,
            "clusters_mapped": report.mapped,
            "problems": report.problems,
            "orphans": report.orphans,
        }))?)?,
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::error(Exit::Failure, format!("{vpool}/{vdisk}: 1 problem"))),
        n => Err(Failure::error(Exit::Failure, format!("{vpool}/{vdisk}: {n} problems"))),
    }
}

/// Shows how far a check is, to a person only.
fn progress(done: u64, all: u64) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let end = if done == all { "\n" } else { "" };
        // Nobody is served by an error about this line.
        let _ = write!(err, "\r{done} of {all} SCOs{end}");
    }
}

fn tell(report: &fsck::Report) -> String {
    let mut out = format!(
        "Manifest {}, {}: {} objects ({}) read, {} clusters verified, {} mapped\n",
        report.manifest,
        human(report.size),
        report.objects,
        human(report.bytes),
        report.clusters,
        report.mapped
    );
    for problem in &report.problems {
        out.push_str(&format!("problem: {problem}\n"));
    }
    for orphan in &report.orphans {
        out.push_str(&format!("orphan (space, no damage): {orphan}\n"));
    }
    out.push_str(if report.problems.is_empty() { "the image is whole\n" } else { "the image is damaged\n" });
    out
}

fn check_no_backend_flags(args: &BackendArgs) -> Result<()> {
    if args.path.is_some() || args.bucket.is_some() || args.endpoint.is_some() {
        return Err(Failure::usage("say --backend directory or --backend s3 before its flags"));
    }
    Ok(())
}

/// Who knows where a vPool lies.
enum Source {
    /// A running router.
    Api(Api),
    /// The registry of a stopped one; its data directory is held meanwhile.
    Registry(Arc<dyn Kv>, #[expect(dead_code, reason = "held")] DataDir),
}

impl Source {
    fn of(args: &RouterArgs, clock: &Arc<dyn Clock>) -> Result<Source> {
        let Some(path) = &args.data_dir else { return Ok(Source::Api(Api::new(&args.api)?)) };
        if !path.join("format").exists() {
            return Err(Failure::error(
                Exit::NotFound,
                format!("{} is not a data directory: it has no file 'format'", path.display()),
            ));
        }
        let data_dir = DataDir::open(path, &**clock)
            .context("to look at a vPool of a router that runs, leave --data-dir away")?;
        Ok(Source::Registry(cluster::stopped(&data_dir)?, data_dir))
    }

    async fn backend(&self, vpool: &Name) -> Result<Value> {
        match self {
            Source::Api(api) => {
                let vpool: Vpool = api.get(&format!("/api/v1/vpools/{}", escape(vpool.as_str()))).await?;
                Ok(vpool.backend)
            }
            Source::Registry(kv, _) => Ok(objectrouter::offline::vpool_backend(kv.clone(), vpool).await?),
        }
    }

    async fn volume(&self, vpool: &Name, vdisk: &Name) -> Result<VolumeId> {
        match self {
            Source::Api(api) => {
                let path = format!("/api/v1/vdisks/{}/{}", escape(vpool.as_str()), escape(vdisk.as_str()));
                let vdisk: Vdisk = api.get(&path).await?;
                Ok(vdisk.id.parse()?)
            }
            Source::Registry(kv, _) => {
                Ok(objectrouter::offline::vdisk_volume(kv.clone(), vpool, vdisk).await?)
            }
        }
    }
}

async fn open(backend: Value, clock: &Arc<dyn Clock>) -> Result<Arc<dyn ObjectStore>> {
    let spec = stores::spec(backend)?;
    Ok(alba_proxy::open(&spec, clock.clone(), &alba_proxy::Metrics::unregistered()).await?)
}

/// The volume that carries this name on the store, from the newest Manifest of each.
async fn find(store: &dyn ObjectStore, vdisk: &Name) -> Result<VolumeId> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list("", after.as_deref(), true, 1000).await?;
        for volume in page.prefixes.iter().filter_map(|prefix| keys::parse_volume_prefix(prefix).ok()) {
            // The newest Manifest sorts first.
            let newest = store.list(&keys::manifest_prefix(volume), None, false, 1).await?;
            let Some(newest) = newest.objects.first() else { continue };
            let manifest = manifest::Manifest::decode(&store.get(&newest.key).await?)
                .with_context(|| format!("object {}", newest.key))?;
            if manifest.kind != manifest::ManifestKind::Deleted && manifest.name == vdisk.as_str() {
                found.push(volume);
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Failure::error(Exit::NotFound, format!("no vDisk '{vdisk}' lies on {}", store.describe()))),
        _ => Err(Failure::error(
            Exit::Conflict,
            format!("several vDisks on {} are called '{vdisk}'", store.describe()),
        )),
    }
}
