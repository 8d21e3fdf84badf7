//! S3 servers for tests: moto (in memory, complete, race-safe), s3s-fs when installed (files,
//! signatures, survives its own kill -9), and one that answers every request with one error.

use crate::process::Process;
use crate::tools::{command, find, free_port, http, need, source};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

/// The credentials that the harness uses.
pub const KEY: &str = "harness";
/// The secret of [`KEY`].
pub const SECRET: &str = "harness-secret";
/// The bucket that is there from the start.
pub const BUCKET: &str = "bucket";

/// moto, with one bucket.
pub struct Moto {
    /// The server's process.
    pub process: Process,
    /// Its port.
    pub port: u16,
}

impl Moto {
    /// Starts it and makes the bucket.
    pub fn start(folder: &Path) -> Result<Self> {
        let moto = Self::launch(folder, &[], &[])?;
        moto.make_bucket(BUCKET)?;
        Ok(moto)
    }

    /// Starts it so that it knows no credentials and refuses all.
    pub fn start_strict(folder: &Path) -> Result<Self> {
        Self::launch(folder, &[], &[("INITIAL_NO_AUTH_ACTION_COUNT", "0")])
    }

    /// Starts it with TLS.
    pub fn start_tls(folder: &Path, certificate: &Path, key: &Path) -> Result<Self> {
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        Self::launch(folder, &["-s", "-c", &certificate, "-k", &key], &[])
    }

    fn launch(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        need(&["moto_server"])?;
        let port = free_port()?;
        let mut command = command(find("moto_server").context("moto_server")?);
        // Its interpreter is found through the original search path.
        command.env("PATH", std::env::var("PATH").unwrap_or_default());
        // One request at a time: see the file there.
        command.env("PYTHONPATH", source("moto"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).args(arguments);
        command.envs(environment.iter().copied());
        let mut process = Process::spawn("moto_server", command, &folder.join("moto.log"))?;
        crate::time::eventually("moto", 60, || {
            process.must_run()?;
            TcpStream::connect(("127.0.0.1", port)).context("connect")
        })?;
        Ok(Self { process, port })
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        match http("PUT", self.port, &format!("/{name}"))? {
            (200, _) => Ok(()),
            (status, body) => bail!("moto made no bucket {name}: {status} {body}"),
        }
    }

    /// Its endpoint URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The keys in the bucket that start with `prefix` (up to 1000).
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let (_, body) = http("GET", self.port, &format!("/{BUCKET}?list-type=2&prefix={prefix}"))?;
        let keys = body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        Ok(keys.map(str::to_string).collect())
    }
}

/// s3s-fs over a folder.
pub struct S3sFs {
    folder: PathBuf,
    process: Process,
    /// Its port.
    pub port: u16,
}

impl S3sFs {
    /// Whether it is installed (`cargo install --locked s3s-fs --features binary`).
    pub fn installed() -> bool {
        program().is_some()
    }

    /// Starts it; the bucket is a folder.
    pub fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder.join("objects").join(BUCKET))?;
        let port = free_port()?;
        let process = launch_s3s(folder, port)?;
        Ok(Self { folder: folder.into(), process, port })
    }

    /// SIGKILL and a new start on the same files.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill9()?;
        self.process = launch_s3s(&self.folder, self.port)?;
        Ok(())
    }

    /// Its endpoint URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn program() -> Option<PathBuf> {
    find("s3s-fs").or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cargo/bin/s3s-fs")).filter(|path| path.is_file())
    })
}

fn launch_s3s(folder: &Path, port: u16) -> Result<Process> {
    let mut command = command(program().context("s3s-fs is not installed")?);
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--access-key",
        KEY,
        "--secret-key",
        SECRET,
    ]);
    command.arg(folder.join("objects"));
    let mut process = Process::spawn("s3s-fs", command, &folder.join("s3s-fs.log"))?;
    crate::time::eventually("s3s-fs", 20, || {
        process.must_run()?;
        TcpStream::connect(("127.0.0.1", port)).context("connect")
    })?;
    Ok(process)
}

/// Starts a server that answers every request with one S3 error; returns its URL. It ends with
/// the process.
pub fn always_refusing(status: u16, code: &str, message: &str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let head = format!("HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nConnection: close\r\n");
    let reply = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 16 << 10];
            // Whatever was asked, the answer is the same; a client that hung up needs none.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(reply.as_bytes());
        }
    });
    Ok(url)
}
