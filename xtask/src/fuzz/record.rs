//! What real NBD clients say to a real server: a proxy keeps their bytes.

use crate::place;
use crate::steps::Program;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A corpus has small files.
const MAX_FILE: usize = 32 << 10;
/// The names are those of the devices in `edge::nbd::fuzz`, and so is the size.
const VPOOL: &str = "p";
const VDISK: &str = "a";
const SIZE: &str = "256KiB";

/// Everything that clients said: one piece for each connection.
type Said = Arc<Mutex<Vec<Vec<u8>>>>;

/// What libnbd's Python binding is told: each kind of request, with and without structured replies.
const SCRIPT: &str = "
import nbd, sys
for structured in (True, False):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.add_meta_context('base:allocation')
    if hasattr(h, 'set_request_extended_headers'): h.set_request_extended_headers(structured)
    h.set_strict_mode(0)
    h.connect_uri(sys.argv[1])
    h.pwrite(b'x' * 4096, 4096)
    h.pwrite(b'y' * 512, 512, nbd.CMD_FLAG_FUA)
    h.pread(8192, 0)
    h.flush()
    h.trim(4096, 8192)
    h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE)
    h.zero(8192, 32768, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
    h.cache(4096, 0)
    if structured: h.block_status(65536, 0, lambda *a: 0)
    for bad in (lambda: h.pread(4096, 1 << 40), lambda: h.pwrite(b'z' * 100, 262100)):
        try: bad()
        except nbd.Error: pass
    h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
h.opt_list(lambda *a: 0)
h.opt_list_meta_context(lambda *a: 0)
h.opt_info()
h.opt_abort()
";

/// Records the sessions of all clients into the corpora of the NBD targets below `seeds`.
pub fn sessions(seeds: &Path) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("storagerouter-record-{}", std::process::id()));
    fs::create_dir_all(folder.join("pool"))?;
    let mut router = Router::start(&folder)?;
    let recorded = record(&router, &folder);
    router.stop();
    fs::remove_dir_all(&folder)?;
    for (client, connections) in recorded? {
        for (i, bytes) in connections.iter().enumerate().filter(|(_, b)| (1..MAX_FILE).contains(&b.len())) {
            keep(seeds, &format!("{client}-{i}"), bytes)?;
        }
    }
    Ok(())
}

/// A session, its options one by one, and its requests.
fn keep(seeds: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let write = |target: &str, name: String, bytes: &[u8]| {
        let folder = seeds.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    write("nbd_session", name.to_owned(), bytes)?;
    let mut rest = bytes.get(4..).unwrap_or_default();
    while let Some(head) = rest.first_chunk::<16>().filter(|head| head.starts_with(b"IHAVEOPT")) {
        let [option, length] =
            [8, 12].map(|at| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let Some(this) = rest.get(..16 + length as usize) else { break };
        write("nbd_options", format!("option-{option}-{length}"), this)?;
        rest = &rest[this.len()..];
    }
    if !rest.is_empty() {
        write("nbd_requests", name.to_owned(), rest)?;
    }
    Ok(())
}

fn record(router: &Router, folder: &Path) -> Result<Vec<(String, Vec<Vec<u8>>)>> {
    let image = folder.join("image").display().to_string();
    fs::write(&image, [7; 16 << 10])?;
    let said = Said::default();
    let uri = format!("nbd://127.0.0.1:{}/{VPOOL}/{VDISK}", proxy(router.nbd, said.clone())?);
    let plain = uri.trim_end_matches(&format!("/{VPOOL}/{VDISK}")).to_owned();
    let fio = format!("--uri={uri}");
    let clients: [(&str, &str, Vec<&str>); 7] = [
        ("nbdinfo", "nbdinfo", vec![&uri]),
        ("nbdinfo-list", "nbdinfo", vec!["--list", &plain]),
        ("nbdinfo-map", "nbdinfo", vec!["--map", &uri]),
        ("qemu-img", "qemu-img", vec!["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]),
        ("nbdcopy", "nbdcopy", vec![&image, &uri]),
        (
            "fio",
            "fio",
            vec!["--name=x", "--ioengine=nbd", &fio, "--rw=randrw", "--bs=512", "--size=8k", "--iodepth=4"],
        ),
        ("libnbd", "/usr/bin/python3", vec!["-c", SCRIPT, &uri]),
    ];
    let mut all = Vec::new();
    for (name, program, arguments) in clients {
        let mut client = Program::new(program, &arguments);
        client.command.current_dir(folder).stdout(Stdio::null());
        client.run()?;
        // What was said last may still be on its way through the proxy.
        std::thread::sleep(Duration::from_millis(300));
        let connections = said.lock().map(|mut said| std::mem::take(&mut *said)).unwrap_or_default();
        println!(
            "{name}: {} connections, {:?} bytes",
            connections.len(),
            connections.iter().map(Vec::len).collect::<Vec<_>>()
        );
        all.push((name.to_owned(), connections));
    }
    Ok(all)
}

/// Listens on a port of its own and passes everything on to `server`; what clients say goes to `said`.
fn proxy(server: u16, said: Said) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
            let (Ok(from), Ok(to)) = (client.try_clone(), upstream.try_clone()) else { continue };
            let index = said.lock().map_or(0, |mut said| {
                said.push(Vec::new());
                said.len() - 1
            });
            let said = said.clone();
            std::thread::spawn(move || {
                pass(from, to, |bytes| {
                    if let Some(all) = said.lock().ok().as_mut().and_then(|said| said.get_mut(index)) {
                        all.extend_from_slice(bytes);
                    }
                })
            });
            std::thread::spawn(move || pass(upstream, client, |_| {}));
        }
    });
    Ok(port)
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut seen: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        seen(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A storage router with one small vDisk.
struct Router {
    process: Child,
    nbd: u16,
}

impl Router {
    fn start(folder: &Path) -> Result<Self> {
        let free = || Ok::<_, anyhow::Error>(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port());
        let (nbd, api) = (free()?, free()?);
        let log = fs::File::create(folder.join("log"))?;
        let process = Command::new(place::program("storagerouter"))
            .args(["serve", "--data-dir"])
            .arg(folder.join("data"))
            .args([
                "--set",
                &format!("nbd.listen=127.0.0.1:{nbd}"),
                "--set",
                "edge.listen=",
                "--set",
                &format!("api.listen=127.0.0.1:{api}"),
                "--set",
                "cluster.listen=127.0.0.1:0",
                "--set",
                "dtl.listen=127.0.0.1:0",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting storagerouter")?;
        let mut router = Router { process, nbd };
        let made =
            router.make(&format!("http://127.0.0.1:{api}"), &folder.join("pool").display().to_string());
        if made.is_err() {
            router.stop();
        }
        made.map(|()| router)
    }

    fn make(&mut self, api: &str, pool: &str) -> Result<()> {
        let cli = |arguments: &[&str]| {
            Program::new(place::program("storagerouter"), &[arguments, &["--api", api]].concat()).text()
        };
        let create = ["vpool", "create", VPOOL, "--backend", "directory", "--path", pool];
        for _ in 0..100 {
            if cli(&create).is_some() {
                let vdisk = ["vdisk", "create", VDISK, "--vpool", VPOOL, "--size", SIZE];
                return cli(&vdisk).map(drop).context("storagerouter vdisk create failed");
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("storagerouter ended: {status}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("storagerouter does not serve")
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
