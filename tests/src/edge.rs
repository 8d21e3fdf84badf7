//! `storagerouter edge` as processes: commands, and the local NBD endpoint.

use crate::nbd::Endpoint;
use crate::netns::Place;
use crate::process::Process;
use crate::router::Router;
use crate::time::eventually;
use crate::tools::{Ran, command_under, own_program, run_within};
use anyhow::{Result, bail};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Where a router's edge clients connect over TCP.
pub fn address(router: &Router) -> String {
    format!("{}:{}", router.config.place.host(), router.config.edge_port)
}

/// `storagerouter edge WORDS --router ADDRESS`.
pub fn edge_command(router: &str, words: &[&str]) -> Result<Command> {
    edge_command_at(&Place::default(), router, words)
}

/// The same on a host in another network.
pub fn edge_command_at(place: &Place, router: &str, words: &[&str]) -> Result<Command> {
    let mut command = command_under(&place.inside(), own_program("storagerouter")?);
    command.env_remove("STORAGEROUTER_EDGE").arg("edge").args(words).args(["--router", router]);
    Ok(command)
}

/// Runs an edge command against a router.
pub fn try_edge(router: &Router, words: &[&str]) -> Result<Ran> {
    run_within(60, edge_command(&address(router), words)?)
}

/// Runs an edge command and demands success.
pub fn edge(router: &Router, words: &[&str]) -> Result<Ran> {
    try_edge(router, words)?.ok()
}

/// `edge serve` on a unix socket.
pub struct EdgeServe {
    place: Place,
    words: Vec<String>,
    router: String,
    socket: PathBuf,
    log: PathBuf,
    process: Process,
}

impl EdgeServe {
    /// Starts it in `folder` and waits until it listens. `words` are more of its command line.
    pub fn start(router: &str, folder: &Path, words: &[&str]) -> Result<Self> {
        Self::start_at(&Place::default(), router, folder, words)
    }

    /// The same on a host in another network; its socket is reached from everywhere.
    pub fn start_at(place: &Place, router: &str, folder: &Path, words: &[&str]) -> Result<Self> {
        let (socket, log) = (folder.join("edge-serve.sock"), folder.join("edge-serve.log"));
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let process = Self::launch(place, router, &socket, &log, &words)?;
        Ok(Self { place: place.clone(), words, router: router.into(), socket, log, process })
    }

    fn launch(place: &Place, router: &str, socket: &Path, log: &Path, words: &[String]) -> Result<Process> {
        let shown = socket.display().to_string();
        let mut all = vec!["serve", "--unix", &shown];
        all.extend(words.iter().map(String::as_str));
        let mut process = Process::spawn("edge serve", edge_command_at(place, router, &all)?, log)?;
        eventually("edge serve listens", 20, || {
            process.must_run()?;
            match std::os::unix::net::UnixStream::connect(socket) {
                Ok(_) => Ok(()),
                Err(error) => bail!("{shown}: {error}"),
            }
        })?;
        Ok(process)
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// SIGSTOP: it says nothing any more, and its sockets stay.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Starts it again, with the same words.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.kill9()?;
        self.process = Self::launch(&self.place, &self.router, &self.socket, &self.log, &self.words)?;
        Ok(())
    }

    /// SIGTERM; how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.terminate(30)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// For the oracle.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket.clone())
    }

    /// The NBD URI of a vDisk.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}
