//! A router with one vPool `p` and one vDisk `p/v` on a backend of choice.

use crate::nbd::Endpoint;
use crate::router::{Config, Router};
use crate::s3::{BUCKET, KEY, Moto, S3sFs, SECRET};
use crate::tools::scratch;
use crate::workload::Subject;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Where the vPool lies.
pub enum Backend {
    /// A folder.
    Directory(PathBuf),
    /// moto; its memory is the store, so it is never restarted.
    Moto(Moto),
    /// s3s-fs over a folder, with its own kill -9; its conditional put is no race-safe one.
    S3sFs(S3sFs),
    /// The S3 service that the environment names (see [`external`]); a prefix of its own.
    External(String),
}

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Directory,
    /// moto.
    Moto,
    /// s3s-fs.
    S3sFs,
    /// The S3 service that the environment names.
    External,
}

/// Endpoint and bucket of an S3 service to test against on demand: `SR_S3_ENDPOINT`, `SR_S3_BUCKET`,
/// and the usual `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`.
pub fn external() -> Option<(String, String)> {
    Some((std::env::var("SR_S3_ENDPOINT").ok()?, std::env::var("SR_S3_BUCKET").ok()?))
}

/// The vPool's name.
pub const POOL: &str = "p";
/// The vDisk's name with its vPool.
pub const DISK: &str = "p/v";

/// The router with its backend and their folder. Fields end in this order.
pub struct Setup {
    /// The router.
    pub router: Router,
    /// Where the vPool lies.
    pub backend: Backend,
    /// Everything lies in here.
    pub folder: tempfile::TempDir,
}

impl Setup {
    /// Starts everything, with a write buffer so small that it wraps often, and seals early.
    pub fn small(name: &str, kind: Kind, size: &str) -> Result<Self> {
        Self::with(name, kind, size, |config| {
            config
                .set("volumedriver.journal_mib=256")
                .set("volumedriver.segment_mib=8")
                .set("volumedriver.seal_age_seconds=1")
        })
    }

    /// As [`Setup::small`], and nothing scrubs: the objects stay as the log left them.
    pub fn unscrubbed(name: &str, kind: Kind, size: &str) -> Result<Self> {
        Self::with(name, kind, size, |config| {
            config
                .set("volumedriver.journal_mib=256")
                .set("volumedriver.segment_mib=8")
                .set("volumedriver.seal_age_seconds=1")
                .set("volumedriver.scrub=false")
        })
    }

    /// Starts everything with the settings that `change` makes.
    pub fn with(name: &str, kind: Kind, size: &str, change: impl FnOnce(Config) -> Config) -> Result<Self> {
        let folder = scratch(name)?;
        let backend = match kind {
            Kind::Directory => Backend::Directory(folder.path().join("pool")),
            Kind::Moto => Backend::Moto(Moto::start(folder.path())?),
            Kind::S3sFs => Backend::S3sFs(S3sFs::start(folder.path())?),
            Kind::External => Backend::External(format!("it/{:016x}/", fastrand::u128(..) as u64)),
        };
        let config = Config::new(&folder.path().join("data"))?;
        let config = if kind == Kind::External { config } else { credentials(config) };
        let router = Router::start(change(config))?;
        let setup = Self { router, backend, folder };
        setup.create_pool(POOL, &[])?;
        setup.router.cli(&["vdisk", "create", "v", "--vpool", POOL, "--size", size])?;
        Ok(setup)
    }

    /// Creates (or adopts) the vPool.
    pub fn create_pool(&self, name: &str, more: &[&str]) -> Result<()> {
        let place = self.backend.place();
        let mut arguments = vec!["vpool", "create", name];
        arguments.extend(place.iter().map(String::as_str));
        arguments.extend(more);
        self.router.cli(&arguments).map(drop)
    }

    /// The vDisk for the oracle.
    pub fn subject(&self, blocks: usize) -> Result<Subject> {
        Subject::new(self.router.endpoint(), DISK, blocks)
    }

    /// The vDisk for the oracle, over the socket file.
    pub fn unix_endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.router.socket())
    }

    /// Kills the router, removes its data directory, starts a new one and adopts the vPool.
    pub fn from_backend_alone(&mut self) -> Result<()> {
        self.router.kill9()?;
        std::fs::remove_dir_all(&self.router.config.data_dir)?;
        std::fs::create_dir_all(&self.router.config.data_dir)?;
        self.router.start_again()?;
        self.create_pool(POOL, &["--adopt"])
    }

    /// The vDisk's NBD URI.
    pub fn uri(&self) -> String {
        self.router.uri(DISK)
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Adds the harness's S3 credentials.
pub fn credentials(config: Config) -> Config {
    config.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET).env("AWS_REGION", "us-east-1")
}

impl Backend {
    /// The arguments of `vpool create` that name it.
    pub fn place(&self) -> Vec<String> {
        let s3 = |url: String, more: &[&str]| {
            let mut all: Vec<String> = s3_place(&url, BUCKET, "it/");
            all.extend(more.iter().map(|argument| argument.to_string()));
            all
        };
        match self {
            Backend::Directory(path) => {
                vec!["--backend".into(), "directory".into(), "--path".into(), path.display().to_string()]
            }
            Backend::Moto(moto) => s3(moto.url(), &[]),
            Backend::S3sFs(server) => s3(server.url(), &["--single-writer"]),
            Backend::External(prefix) => {
                let (url, bucket) = external().unwrap_or_default();
                s3_place(&url, &bucket, prefix)
            }
        }
    }

    /// Its folder, of a directory backend.
    pub fn directory(&self) -> Result<&Path> {
        match self {
            Backend::Directory(path) => Ok(path),
            _ => bail!("not a directory backend"),
        }
    }
}

/// The arguments of `vpool create` for an S3 endpoint.
pub fn s3_place(url: &str, bucket: &str, prefix: &str) -> Vec<String> {
    ["--backend", "s3", "--endpoint", url, "--bucket", bucket, "--prefix", prefix]
        .map(str::to_string)
        .to_vec()
}

/// An export that can be killed and started again.
pub trait Served {
    /// Its NBD URI.
    fn uri(&self) -> String;
    /// SIGKILL of the server.
    fn kill(&mut self) -> Result<()>;
    /// Starts the server again and waits until it serves.
    fn revive(&mut self) -> Result<()>;
}

impl Served for Setup {
    fn uri(&self) -> String {
        Setup::uri(self)
    }

    fn kill(&mut self) -> Result<()> {
        self.router.kill9()
    }

    fn revive(&mut self) -> Result<()> {
        self.router.start_again()
    }
}

impl Served for crate::reference::Reference {
    fn uri(&self) -> String {
        crate::reference::Reference::uri(self)
    }

    fn kill(&mut self) -> Result<()> {
        self.kill9()
    }

    fn revive(&mut self) -> Result<()> {
        self.kill_and_restart()
    }
}
