//! Runs other people's programs with a time limit, and finds ours.

use crate::time::Stopwatch;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    line: String,
}

impl Ran {
    /// Demands success.
    pub fn ok(self) -> Result<Ran> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{} failed ({})\n{}\n{}", self.line, self.status, self.stdout.trim(), self.stderr.trim())
    }

    /// Demands failure whose message holds one of `words`; returns the message.
    pub fn refused(self, words: &[&str]) -> Result<String> {
        let message = format!("{}{}", self.stdout, self.stderr);
        if self.status.success() {
            bail!("{} should have failed; it said: {message}", self.line);
        }
        let lower = message.to_lowercase();
        if !words.iter().any(|word| lower.contains(&word.to_lowercase())) {
            bail!("{} failed without a word of {words:?}: {message}", self.line);
        }
        if lower.contains("panicked") {
            bail!("{} panicked: {message}", self.line);
        }
        Ok(message)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("{} printed no JSON: {}", self.line, self.stdout))
    }
}

/// The search path for tools: Debian's own first, because its Python holds the bindings.
pub fn path() -> String {
    let rest = std::env::var("PATH").unwrap_or_default();
    format!("/usr/bin:/bin:/usr/sbin:/sbin:{rest}")
}

/// A command that other words begin: a program that starts it; none usually.
pub fn command_under(starter: &[String], program: impl AsRef<OsStr>) -> Command {
    match starter.split_first() {
        Some((starter, arguments)) => {
            let mut command = command(starter);
            command.args(arguments).arg(program);
            command
        }
        None => command(program),
    }
}

/// A command with the tools' search path and English messages.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path()).env("LC_ALL", "C.UTF-8");
    command
}

/// Runs to the end, killed after `seconds`.
pub fn run_within(seconds: u64, mut command: Command) -> Result<Ran> {
    let line = format!("{command:?}");
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("running {line}"))?;
    let watch = Stopwatch::start();
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if watch.past(seconds) {
            late = true;
            child.kill()?;
        }
        crate::time::pause(5);
    };
    let ran = Ran { status, stdout: text(&mut stdout)?, stderr: text(&mut stderr)?, line };
    if late {
        bail!("{} took more than {seconds} s\n{}\n{}", ran.line, ran.stdout, ran.stderr);
    }
    Ok(ran)
}

fn text(file: &mut std::fs::File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a tool and demands success within five minutes.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<Ran> {
    let mut command = command(program);
    command.args(arguments);
    run_within(300, command)?.ok()
}

/// Fails with the package to install when a program is not there.
pub fn need(programs: &[&str]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|program| find(program).is_none()).collect();
    if !missing.is_empty() {
        bail!("not installed: {missing:?}; `cargo xtask packages` installs what the tests need");
    }
    Ok(())
}

/// Fails when FUSE or loop mounts cannot be made here.
pub fn need_mounts() -> Result<()> {
    need(&["nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "losetup", "mount"])?;
    if !is_root() {
        bail!("this test mounts file systems: run it as root");
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            bail!("this test mounts file systems, and {device} is missing");
        }
    }
    Ok(())
}

/// Where a program lies.
pub fn find(program: &str) -> Option<PathBuf> {
    let extra = format!("{}:/usr/lib/postgresql/15/bin:/usr/lib/postgresql/17/bin", path());
    let own = target().ok().map(|target| target.join("tools/bin"));
    let own_env = target().ok().map(|target| target.join("tools/venv/bin"));
    let system = extra.split(':').map(PathBuf::from).collect::<Vec<_>>();
    own.into_iter()
        .chain(own_env)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// The target folder that this test was built into.
pub fn target() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let profile = exe.ancestors().find(|folder| folder.join(".cargo-lock").exists());
    let profile = profile.or_else(|| exe.parent()?.parent()).context("no target folder above this test")?;
    Ok(profile.parent().context("no target folder")?.to_path_buf())
}

/// A program of this workspace, built beside this test (or named by `SR_BIN_DIR`).
pub fn own_program(name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os("SR_BIN_DIR") {
        Some(folder) => PathBuf::from(folder).join(name),
        None => target()?.join("release").join(name),
    };
    if !path.is_file() {
        bail!("{} is not there: build it with `cargo build --release --workspace`", path.display());
    }
    Ok(path)
}

/// A folder of this package in the source tree.
pub fn source(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// A TCP port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A folder for one test, removed at its end (kept with `SR_KEEP=1`).
pub fn scratch(name: &str) -> Result<tempfile::TempDir> {
    let mut folder = tempfile::Builder::new().prefix(&format!("sr-{name}-")).tempdir()?;
    folder.disable_cleanup(std::env::var_os("SR_KEEP").is_some());
    Ok(folder)
}

/// One HTTP request to 127.0.0.1; the status and the body.
pub fn http(method: &str, port: u16, path: &str) -> Result<(u16, String)> {
    let reply = http_over(std::net::TcpStream::connect(("127.0.0.1", port))?, method, path)?;
    Ok((reply.status, reply.body))
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// The status line and the header.
    pub head: String,
    /// What came behind it.
    pub body: String,
}

/// One HTTP request on a connection.
pub fn http_over(mut stream: std::net::TcpStream, method: &str, path: &str) -> Result<Reply> {
    use std::io::{Read, Write};
    let host = stream.peer_addr()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply);
    let status = reply.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no HTTP reply: {reply}"))?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    Ok(Reply { status, head: head.replace('\r', ""), body: body.into() })
}

/// User and system CPU seconds that a process has used.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // utime and stime, counted in hundredths of a second on Linux.
    Ok((ticks(11) + ticks(12)) as f64 / 100.0)
}

/// The most memory that a process has had, in bytes.
pub fn peak_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Bytes that a process has caused to be written to storage.
pub fn written_bytes(pid: u32) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
    Ok(line.trim().parse()?)
}

/// Whether this is root, who may mount.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
