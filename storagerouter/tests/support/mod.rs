//! Runs the built binary.

// Each test program uses its part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a command answered.
pub struct Answer {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Answer {
    /// The answer as JSON.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// The binary, without what the environment would tell it.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_storagerouter"));
    for name in [
        "STORAGEROUTER_CONFIG",
        "STORAGEROUTER_API",
        "STORAGEROUTER_TOKEN_FILE",
        "STORAGEROUTER_API_CA",
        "STORAGEROUTER_EDGE",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
pub fn run(words: &[&str]) -> Answer {
    let output = command().args(words).stdin(Stdio::null()).output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory that goes away with its handle.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Settings with which a router takes whatever ports are free, and little of the disk.
pub const ANY_PORT: &[&str] = &[
    "nbd.listen=127.0.0.1:0",
    "edge.listen=127.0.0.1:0",
    "api.listen=127.0.0.1:0",
    "cluster.listen=127.0.0.1:0",
    "dtl.listen=127.0.0.1:0",
    "dtl.size_mib=64",
    "dtl.volume_mib=16",
    "dtl.segment_mib=4",
    "dtl.volumes=256",
];

/// A running router; killed when it is dropped.
pub struct Router {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    api: String,
}

impl Router {
    /// Starts one on `dir/data` with free ports, and waits until its API answers.
    pub fn start(dir: &Path) -> Router {
        Self::start_with(dir, &[])
    }

    /// The same, with more words on the command line.
    pub fn start_with(dir: &Path, words: &[&str]) -> Router {
        let mut command = command();
        command.arg("serve").args(words);
        Self::spawn(dir, command)
    }

    /// The same, under a service manager that listens on `socket` and wants a sign of life.
    pub fn start_under(dir: &Path, socket: &Path) -> Router {
        let mut command = command();
        command.arg("serve").env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "2000000");
        Self::spawn(dir, command)
    }

    /// Starts one and waits for nothing.
    pub fn launch(dir: &Path) -> Router {
        let mut command = command();
        command.arg("serve");
        Self::begin(dir, command)
    }

    fn spawn(dir: &Path, command: Command) -> Router {
        let mut router = Self::begin(dir, command);
        router.api = router.wait_for_api();
        router
    }

    fn begin(dir: &Path, mut command: Command) -> Router {
        let (data, log) = (dir.join("data"), dir.join("router.log"));
        let file = std::fs::File::create(&log).unwrap();
        let child = command
            .args(["--log-format", "json", "--data-dir"])
            .arg(&data)
            .args(ANY_PORT.iter().flat_map(|setting| ["--set", setting]))
            .args(["--set", "volumedriver.journal_mib=64", "--set", "volumedriver.segment_mib=4"])
            .args(["--set", "volumedriver.buffer_mib=32", "--set", "shutdown_seconds=10"])
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Router { child, data, log, api: String::new() }
    }

    #[allow(clippy::disallowed_methods)]
    fn wait_for_api(&mut self) -> String {
        for _ in 0..600 {
            for line in self.log().lines() {
                if let Ok(line) = serde_json::from_str::<serde_json::Value>(line)
                    && let Some(url) = line["api"].as_str()
                {
                    return url.to_string();
                }
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the router ended with {status}: {}", self.log());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("the router does not serve: {}", self.log());
    }

    /// Runs a client command against it.
    pub fn run(&self, words: &[&str]) -> Answer {
        run(&[words, &["--api", &self.api]].concat())
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits until it logged this.
    #[allow(clippy::disallowed_methods)]
    pub fn wait_for_log(&self, text: &str) {
        for _ in 0..300 {
            if self.log().contains(text) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("'{text}' is not in the log: {}", self.log());
    }

    /// SIGTERM; its exit code.
    pub fn terminate(&mut self) -> i32 {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
