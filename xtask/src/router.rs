//! A storage router as a process beside this one: started, watched, asked, stopped.

use crate::place;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Where a router lies and how it is reached.
pub struct Router {
    /// Its folder: data directory `router`, `router.log`, `router.pid`.
    pub folder: PathBuf,
    /// Port of NBD.
    pub nbd_port: u16,
    /// Port of the API.
    pub api_port: u16,
    /// `key=value` settings beyond these two.
    pub settings: Vec<String>,
}

impl Router {
    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts it.
    pub fn start(&self) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.file("router.log"))?;
        let mut command = self.command(&["serve"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C reaches this program, which passes it on once: twice would mean "at once".
        let router = command.process_group(0).spawn().context("starting storagerouter")?;
        fs::write(self.file("router.pid"), format!("{}\n", router.id()))?;
        Ok(router)
    }

    /// A command of the program that takes the router's configuration.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(place::program("storagerouter"));
        command.args(words).arg("--data-dir").arg(self.file("router"));
        command.args([
            "--set",
            &format!("nbd.listen=127.0.0.1:{}", self.nbd_port),
            "--set",
            "edge.listen=127.0.0.1:0",
        ]);
        command.args(["--set", &format!("api.listen=127.0.0.1:{}", self.api_port)]);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// Waits until it serves; its exit status when it ends instead.
    pub fn wait_ready(&self, router: &mut Child, signals: &AtomicUsize) -> Result<Option<ExitStatus>> {
        let began = Instant::now();
        let mut asked_to_stop = false;
        loop {
            if let Some(status) = router.try_wait()? {
                return Ok(Some(status));
            }
            if self.ready() {
                return Ok(None);
            }
            if signals.load(Ordering::SeqCst) > 0 && !asked_to_stop {
                asked_to_stop = true;
                terminate(router)?;
            }
            if began.elapsed() > Duration::from_secs(120) {
                terminate(router)?;
                bail!("storagerouter is not ready after two minutes; its log ends with:\n{}", self.log_end());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ready(&self) -> bool {
        let ask = || -> Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.api_port))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            write!(stream, "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply)?;
            Ok(reply.starts_with(b"HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }

    /// The end of what it logged.
    pub fn log_end(&self) -> String {
        let text = fs::read(self.file("router.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// URL of its API.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }

    /// Runs a client command against it.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(place::program("storagerouter"));
        command.args(arguments).args(["--api", &self.api()]);
        command.output().with_context(|| format!("{command:?}"))
    }
}

/// Asks it to stop, and looks once whether it has.
pub fn stop(router: &mut Child) -> Result<Option<ExitStatus>> {
    terminate(router)?;
    Ok(router.try_wait()?)
}

/// Asks it to stop; the second time, at once.
pub fn terminate(router: &Child) -> Result<()> {
    // The shell's own kill is on every machine; it fails only when the process has just ended.
    Command::new("sh").args(["-c", &format!("kill -TERM {}", router.id())]).stderr(Stdio::null()).status()?;
    Ok(())
}

/// The first port from `wanted` on that nobody listens on.
pub fn free(wanted: u16) -> Result<u16> {
    let found =
        (wanted..=wanted.saturating_add(200)).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let port = found.with_context(|| format!("no free port from {wanted} on"))?;
    if port != wanted {
        println!("     port {wanted} is busy: taking {port}");
    }
    Ok(port)
}
