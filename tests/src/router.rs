//! The storage router as a process: started, asked, killed and started again.

use crate::nbd::Endpoint;
use crate::netns::Place;
use crate::process::Process;
use crate::tools::{Ran, Reply, command_under, free_port, http_over, own_program, run_within};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// How to start a router.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// TCP port of its NBD server.
    pub nbd_port: u16,
    /// TCP port of its edge protocol's server.
    pub edge_port: u16,
    /// TCP port of its API.
    pub api_port: u16,
    /// TCP port of its registry; 0 is any, which nobody could join.
    pub registry_port: u16,
    /// `key=value` settings beyond the listeners.
    pub settings: Vec<String>,
    /// Environment, such as credentials.
    pub environment: Vec<(String, String)>,
    /// A program with arguments that starts it, such as `prlimit`; none usually.
    pub starter: Vec<String>,
    /// In which network it lives.
    pub place: Place,
}

impl Config {
    /// Free ports, defaults otherwise.
    pub fn new(data_dir: &Path) -> Result<Self> {
        let (nbd_port, edge_port, api_port) = (free_port()?, free_port()?, free_port()?);
        Ok(Self {
            data_dir: data_dir.into(),
            nbd_port,
            edge_port,
            api_port,
            registry_port: 0,
            settings: vec![],
            environment: vec![],
            starter: vec![],
            place: Place::default(),
        })
    }

    /// Adds a setting.
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Lets a program with arguments start it: it must end in `exec` of the rest of its arguments.
    pub fn under(mut self, starter: &[&str]) -> Self {
        self.starter = starter.iter().map(|word| word.to_string()).collect();
        self
    }

    /// Lets it live in a network of its own. Nobody gets at it by a socket file, which knows no networks.
    pub fn at(mut self, place: Place) -> Self {
        self.starter = place.inside();
        let advertise = format!("cluster.advertise={}", place.host());
        self.place = place;
        self.set(&advertise).set("edge.unix=").set("nbd.unix=")
    }

    /// The command line of `storagerouter serve`.
    pub fn command(&self) -> Result<Command> {
        self.command_of(&["serve"])
    }

    /// The command line of a command that takes the router's configuration.
    pub fn command_of(&self, words: &[&str]) -> Result<Command> {
        let program = own_program("storagerouter")?;
        let mut command = command_under(&self.starter, program);
        command.args(words).arg("--data-dir").arg(&self.data_dir);
        let host = self.place.host();
        for (key, port) in [
            ("nbd", self.nbd_port),
            ("edge", self.edge_port),
            ("api", self.api_port),
            ("cluster", self.registry_port),
            ("dtl", 0),
        ] {
            command.args(["--set", &format!("{key}.listen={host}:{port}")]);
        }
        if self.place.is_apart() {
            command.arg("--insecure");
        }
        for small in ["dtl.size_mib=64", "dtl.volume_mib=16", "dtl.segment_mib=4", "dtl.volumes=256"] {
            command.args(["--set", small]);
        }
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Starts it where it must refuse: its exit status and what it said, within half a minute.
    pub fn must_refuse(&self, words: &[&str]) -> Result<String> {
        run_within(30, self.command()?)?.refused(words)
    }
}

/// A running router.
pub struct Router {
    /// How it was started.
    pub config: Config,
    process: Process,
    log: PathBuf,
}

impl Router {
    /// Starts it and waits until it is ready.
    pub fn start(config: Config) -> Result<Self> {
        let mut router = Self::launch(config)?;
        router.wait_ready(60)?;
        Ok(router)
    }

    /// Starts it and waits only until its API answers.
    pub fn start_unready(config: Config) -> Result<Self> {
        let mut router = Self::launch(config)?;
        router.wait_for("/healthz", 60)?;
        Ok(router)
    }

    /// Starts it and waits for nothing.
    pub fn launch(config: Config) -> Result<Self> {
        std::fs::create_dir_all(&config.data_dir)?;
        let log = config.data_dir.with_extension("log");
        let process = Process::spawn("storagerouter", config.command()?, &log)?;
        Ok(Self { config, process, log })
    }

    /// Waits until `/readyz` says yes.
    pub fn wait_ready(&mut self, seconds: u64) -> Result<()> {
        self.wait_for("/readyz", seconds)
    }

    fn wait_for(&mut self, path: &str, seconds: u64) -> Result<()> {
        crate::time::eventually(&format!("{path} of the router"), seconds, || {
            self.process.must_run()?;
            match self.get(path)? {
                (200, _) => Ok(()),
                (status, body) => bail!("status {status}: {body}"),
            }
        })
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// SIGSTOP: it stands still, and keeps its files, its lock and its sockets.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// SIGTERM; it must end with success within a minute.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let status = self.process.terminate(60)?;
        if !status.success() {
            bail!("the router ended with {status} on SIGTERM:\n{}", self.process.tail());
        }
        Ok(status)
    }

    /// Starts it again with the same settings.
    pub fn start_again(&mut self) -> Result<()> {
        self.start_again_unready()?;
        self.wait_ready(60)
    }

    /// Starts it again, and waits only until its API answers.
    pub fn start_again_unready(&mut self) -> Result<()> {
        self.launch_again()?;
        self.wait_for("/healthz", 60)
    }

    /// Starts it again, and waits for nothing.
    pub fn launch_again(&mut self) -> Result<()> {
        self.process.kill9()?;
        self.process = Process::spawn("storagerouter", self.config.command()?, &self.log)?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, seconds: u64) -> Result<ExitStatus> {
        self.process.wait(seconds)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Fails when it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        self.process.must_run()
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Runs the command line against its API, at most two minutes.
    pub fn try_cli(&self, arguments: &[&str]) -> Result<Ran> {
        self.try_cli_within(120, arguments)
    }

    /// Runs the command line against its API.
    pub fn try_cli_within(&self, seconds: u64, arguments: &[&str]) -> Result<Ran> {
        let mut command = command_under(&self.config.place.beside(), own_program("storagerouter")?);
        command.args(arguments).arg("--api").arg(self.api());
        // fsck and inspect read the object store themselves, with the same credentials.
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        run_within(seconds, command)
    }

    /// Runs the command line and demands success.
    pub fn cli(&self, arguments: &[&str]) -> Result<Ran> {
        self.try_cli(arguments)?.ok()
    }

    /// Runs the command line with `-o json`.
    pub fn cli_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        self.cli(&all)?.json()
    }

    /// What `vdisk show` says.
    pub fn show(&self, vdisk: &str) -> Result<Value> {
        self.cli_json(&["vdisk", "show", vdisk])
    }

    /// A number out of what `vdisk show` says.
    pub fn number(&self, vdisk: &str, field: &str) -> Result<u64> {
        let shown = self.show(vdisk)?;
        shown[field].as_u64().with_context(|| format!("no number {field} in {shown}"))
    }

    /// Uploads all that was accepted.
    pub fn drain(&self, vdisk: &str) -> Result<()> {
        self.cli(&["vdisk", "drain", vdisk]).map(drop)
    }

    /// The API's address.
    pub fn api(&self) -> String {
        format!("http://{}:{}", self.config.place.host(), self.config.api_port)
    }

    /// GET on the API.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let reply = self.reply(path)?;
        Ok((reply.status, reply.body))
    }

    /// GET on the API, with all of the answer.
    pub fn reply(&self, path: &str) -> Result<Reply> {
        http_over(self.config.place.connect(self.config.api_port)?, "GET", path)
    }

    /// The NBD URI of an export over TCP.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.config.nbd_port)
    }

    /// The socket file of its NBD server.
    pub fn socket(&self) -> PathBuf {
        self.config.data_dir.join("nbd.sock")
    }

    /// The NBD URI of an export over the socket file.
    pub fn unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Its NBD server over TCP.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Tcp(format!("127.0.0.1:{}", self.config.nbd_port))
    }

    /// User and system CPU seconds it has used.
    pub fn cpu_seconds(&self) -> Result<f64> {
        crate::tools::cpu_seconds(self.pid())
    }
}
