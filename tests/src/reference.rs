//! Other people's NBD servers: stand-ins that show whether a test tests, and peers of benchmarks.

use crate::nbd::Endpoint;
use crate::process::Process;
use crate::tools::{command, free_port, need};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A reference server; it serves any export name.
pub struct Reference {
    arguments: Vec<String>,
    folder: PathBuf,
    endpoint: Endpoint,
    process: Process,
}

impl Reference {
    /// nbdkit with these arguments, such as `memory 64M`, on a free TCP port.
    pub fn nbdkit(folder: &Path, arguments: &[&str]) -> Result<Self> {
        Self::nbdkit_at(folder, local(free_port()?), arguments)
    }

    /// nbdkit at an address of 127.0.0.1 or on a socket file.
    pub fn nbdkit_at(folder: &Path, endpoint: Endpoint, arguments: &[&str]) -> Result<Self> {
        need(&["nbdkit"])?;
        let mut all = vec!["nbdkit".to_owned(), "-f".into()];
        match &endpoint {
            Endpoint::Tcp(address) => {
                all.extend(["-i".into(), "127.0.0.1".into(), "-p".into(), port(address)])
            }
            Endpoint::Unix(path) => all.extend(["-U".into(), path.display().to_string()]),
        }
        all.extend(arguments.iter().map(|argument| argument.to_string()));
        Self::start(all, folder, endpoint)
    }

    /// qemu-nbd over a raw file, on a free TCP port.
    pub fn qemu_nbd(folder: &Path, image: &Path) -> Result<Self> {
        Self::qemu_nbd_at(folder, local(free_port()?), image)
    }

    /// qemu-nbd over a raw file, at an address of 127.0.0.1 or on a socket file.
    pub fn qemu_nbd_at(folder: &Path, endpoint: Endpoint, image: &Path) -> Result<Self> {
        need(&["qemu-nbd"])?;
        let fixed = ["qemu-nbd", "-t", "-f", "raw", "-e", "16", "--discard=unmap", "-x", "x"];
        let mut all: Vec<String> = fixed.iter().map(|argument| argument.to_string()).collect();
        match &endpoint {
            Endpoint::Tcp(address) => {
                all.extend(["-b".into(), "127.0.0.1".into(), "-p".into(), port(address)])
            }
            Endpoint::Unix(path) => all.extend(["-k".into(), path.display().to_string()]),
        }
        all.push(image.display().to_string());
        Self::start(all, folder, endpoint)
    }

    fn start(arguments: Vec<String>, folder: &Path, endpoint: Endpoint) -> Result<Self> {
        let process = launch(&arguments, folder)?;
        let mut server = Self { arguments, folder: folder.into(), endpoint, process };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> Result<()> {
        crate::time::eventually("reference server", 10, || {
            self.process.must_run()?;
            match &self.endpoint {
                Endpoint::Tcp(address) => std::net::TcpStream::connect(address).map(drop),
                Endpoint::Unix(path) => std::os::unix::net::UnixStream::connect(path).map(drop),
            }
            .context("connect")
        })
    }

    /// SIGKILL and a new start.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill9()?;
        if let Endpoint::Unix(path) = &self.endpoint {
            std::fs::remove_file(path)?;
        }
        self.process = launch(&self.arguments, &self.folder)?;
        self.wait()
    }

    /// Where it listens.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Its URI.
    pub fn uri(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp(address) => format!("nbd://{address}/x"),
            Endpoint::Unix(path) => format!("nbd+unix:///x?socket={}", path.display()),
        }
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

fn local(port: u16) -> Endpoint {
    Endpoint::Tcp(format!("127.0.0.1:{port}"))
}

fn port(address: &str) -> String {
    address.rsplit(':').next().unwrap_or_default().to_owned()
}

fn launch(arguments: &[String], folder: &Path) -> Result<Process> {
    let mut command = command(&arguments[0]);
    command.args(&arguments[1..]);
    Process::spawn(&arguments[0], command, &folder.join("reference.log"))
}
