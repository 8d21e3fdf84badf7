//! Other people's NBD servers: stand-ins that show whether a test tests, and peers of benchmarks.

use crate::nbd::Endpoint;
use crate::process::Process;
use crate::tools::{command, free_port, need};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A reference server on a TCP port; it serves any export name.
pub struct Reference {
    arguments: Vec<String>,
    folder: PathBuf,
    port: u16,
    process: Process,
}

impl Reference {
    /// nbdkit with these arguments, such as `memory 64M`.
    pub fn nbdkit(folder: &Path, arguments: &[&str]) -> Result<Self> {
        need(&["nbdkit"])?;
        let port = free_port()?;
        let mut all = vec!["nbdkit".into(), "-f".into(), "-i".into(), "127.0.0.1".into(), "-p".into()];
        all.push(port.to_string());
        all.extend(arguments.iter().map(|argument| argument.to_string()));
        Self::start(all, folder, port)
    }

    /// qemu-nbd over a raw file.
    pub fn qemu_nbd(folder: &Path, image: &Path) -> Result<Self> {
        need(&["qemu-nbd"])?;
        let port = free_port()?;
        let fixed = [
            "qemu-nbd",
            "-t",
            "-f",
            "raw",
            "-e",
            "16",
            "-b",
            "127.0.0.1",
            "--discard=unmap",
            "-x",
            "x",
            "-p",
        ];
        let mut all: Vec<String> = fixed.iter().map(|argument| argument.to_string()).collect();
        all.push(port.to_string());
        all.push(image.display().to_string());
        Self::start(all, folder, port)
    }

    fn start(arguments: Vec<String>, folder: &Path, port: u16) -> Result<Self> {
        let process = launch(&arguments, folder)?;
        let mut server = Self { arguments, folder: folder.into(), port, process };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> Result<()> {
        crate::time::eventually("reference server", 10, || {
            self.process.must_run()?;
            std::net::TcpStream::connect(("127.0.0.1", self.port)).context("connect")
        })?;
        Ok(())
    }

    /// SIGKILL and a new start.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill9()?;
        self.process = launch(&self.arguments, &self.folder)?;
        self.wait()
    }

    /// Where it listens.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Tcp(format!("127.0.0.1:{}", self.port))
    }

    /// Its URI.
    pub fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/x", self.port)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }
}

fn launch(arguments: &[String], folder: &Path) -> Result<Process> {
    let mut command = command(&arguments[0]);
    command.args(&arguments[1..]);
    Process::spawn(&arguments[0], command, &folder.join("reference.log"))
}
