//! Three storage routers in one cluster, to play with: built, joined, supervised.

use crate::router::{Router, free, stop, terminate};
use crate::steps::Program;
use crate::{check, packages, place};
use anyhow::{Context, Result, bail};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// `cargo xtask cluster`.
#[derive(Args)]
pub struct Cluster {
    /// Where the data lies [default: ~/.local/share/storagerouter-cluster]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// First of twelve ports, four for each router, when the cluster is made; busy ones are left out
    #[arg(long, default_value_t = 10840)]
    port: u16,
}

/// A router of the cluster and its process.
struct Running {
    name: &'static str,
    router: Router,
    process: Child,
}

/// `cargo xtask cluster`.
pub fn run(cluster: &Cluster) -> Result<ExitCode> {
    let data = match &cluster.data_dir {
        Some(folder) => std::path::absolute(folder)?,
        None => place::data("storagerouter-cluster")?,
    };
    let signals = Arc::new(AtomicUsize::new(0));
    println!("1/3  Install what is missing");
    packages::for_cluster()?;
    println!(
        "2/3  Build in release mode (10 to 25 minutes the first time, most of it RocksDB; seconds later)"
    );
    check::build().run()?;
    println!("3/3  Start three storage routers on {}", data.display());
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, signals.clone(), 1)?;
    }
    make_certificates(&data.join("tls"))?;
    let routers = places(&data, cluster.port)?;
    let peer = format!("127.0.0.1:{}", ports(&data)?[2]);
    let mut running = Vec::new();
    let outcome = start(&routers, &peer, &mut running, &signals).and_then(|()| {
        if signals.load(Ordering::SeqCst) == 0 {
            explain(&running);
        }
        supervise(&mut running, &signals)
    });
    let clean = stop_all(&mut running, &signals)?;
    outcome?;
    println!("Stopped. The data stays in {}; the next `cargo xtask cluster` finds it again.", data.display());
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ports of the cluster, drawn once: its members find each other at them.
fn ports(data: &Path) -> Result<Vec<u16>> {
    let file = data.join("ports");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let ports: Vec<u16> = text.split_whitespace().filter_map(|port| port.parse().ok()).collect();
    match ports.len() {
        12 => Ok(ports),
        _ => bail!("{} does not hold twelve ports", file.display()),
    }
}

fn places(data: &Path, first: u16) -> Result<Vec<(&'static str, Router)>> {
    if !data.join("ports").exists() {
        let mut text = String::new();
        let mut next = first;
        for _ in 0..12 {
            let port = free(next)?;
            text.push_str(&format!("{port} "));
            next = port.saturating_add(1);
        }
        fs::write(data.join("ports"), text.trim_end())?;
    }
    let ports = ports(data)?;
    let mut routers = Vec::new();
    for (name, ports) in NAMES.into_iter().zip(ports.chunks(4)) {
        let folder = data.join(name);
        fs::create_dir_all(&folder)?;
        let file = |name: &str| data.join("tls").join(name).display().to_string();
        let settings = vec![
            format!("cluster.name={name}"),
            format!("cluster.domains=[\"machine-{name}\"]"),
            format!("cluster.listen=127.0.0.1:{}", ports[2]),
            format!("dtl.listen=127.0.0.1:{}", ports[3]),
            format!("cluster.tls_cert={}", file(&format!("{name}-cert.pem"))),
            format!("cluster.tls_key={}", file(&format!("{name}-key.pem"))),
            format!("cluster.tls_ca={}", file("ca-cert.pem")),
            // Three of them share one disk.
            "volumedriver.journal_mib=1024".to_string(),
            "volumedriver.ssd_cache_mib=1024".to_string(),
        ];
        routers.push((name, Router { folder, nbd_port: ports[0], api_port: ports[1], settings }));
    }
    Ok(routers)
}

/// Starts all: each joins the first at its first start; later ones wait for each other.
fn start(
    routers: &[(&'static str, Router)],
    peer: &str,
    running: &mut Vec<Running>,
    signals: &AtomicUsize,
) -> Result<()> {
    for (name, router) in routers {
        let router = Router { settings: router.settings.clone(), folder: router.folder.clone(), ..*router };
        let joins = *name != NAMES[0] && !router.file("router").join("membership").exists();
        if joins {
            // It asks the others, so they have to be there.
            wait_all(running, signals)?;
            if signals.load(Ordering::SeqCst) > 0 {
                return Ok(());
            }
            let joined = router.command(&["cluster", "join", "--peer", peer]).output()?;
            if !joined.status.success() {
                bail!("{name} does not join: {}", String::from_utf8_lossy(&joined.stderr).trim());
            }
        }
        let process = router.start()?;
        running.push(Running { name, router, process });
    }
    wait_all(running, signals)
}

fn wait_all(running: &mut [Running], signals: &AtomicUsize) -> Result<()> {
    for Running { name, router, process } in running {
        if let Some(status) = router.wait_ready(process, signals)?
            && signals.load(Ordering::SeqCst) == 0
        {
            bail!("router {name} did not start ({status}):\n{}", router.log_end());
        }
    }
    Ok(())
}

/// Starts again what was killed, until a signal comes or one ends by itself.
fn supervise(running: &mut [Running], signals: &AtomicUsize) -> Result<()> {
    while signals.load(Ordering::SeqCst) == 0 {
        for Running { name, router, process } in running.iter_mut() {
            let Some(status) = process.try_wait()? else { continue };
            if status.signal().is_none() {
                bail!("router {name} ended by itself ({status}):\n{}", router.log_end());
            }
            println!("router {name} was killed ({status}): starting it again on the same data");
            let began = Instant::now();
            *process = router.start()?;
            if let Some(status) = router.wait_ready(process, signals)?
                // Who was killed once more is found again in the next round.
                && status.signal().is_none()
                && signals.load(Ordering::SeqCst) == 0
            {
                bail!("router {name} did not come back ({status}):\n{}", router.log_end());
            }
            println!("it serves again after {:.1} s", began.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn stop_all(running: &mut [Running], signals: &AtomicUsize) -> Result<bool> {
    println!("\nStopping: what was acknowledged is flushed, what is cheap is uploaded");
    signals.store(0, Ordering::SeqCst);
    for one in running.iter_mut() {
        stop(&mut one.process)?;
    }
    let mut clean = true;
    for Running { router, process, .. } in running.iter_mut() {
        let status = loop {
            if let Some(status) = process.try_wait()? {
                break status;
            }
            if signals.swap(0, Ordering::SeqCst) > 0 {
                println!("Stopping at once");
                terminate(process)?;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        clean &= status.success();
        let _ = fs::remove_file(router.file("router.pid"));
    }
    Ok(clean)
}

/// An authority, and for each router a certificate for both sides of a connection.
fn make_certificates(folder: &Path) -> Result<()> {
    let file = |name: &str| folder.join(name).display().to_string();
    // The last one that is made.
    if folder.join(format!("{}-cert.pem", NAMES[2])).exists() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let certtool = |words: &[&str]| Program::new("certtool", words).run_quietly(&folder.join("certtool.log"));
    let key = |name: &str| {
        let path = file(&format!("{name}-key.pem"));
        certtool(&["--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", &path])?;
        Ok::<_, anyhow::Error>(fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?)
    };
    let (ca_key, ca_cert, ca_info) = (file("ca-key.pem"), file("ca-cert.pem"), file("ca.info"));
    fs::write(
        &ca_info,
        "cn = storagerouter cluster to play with\nca\ncert_signing_key\nexpiration_days = 3650\n",
    )?;
    key("ca")?;
    certtool(&[
        "--generate-self-signed",
        "--load-privkey",
        &ca_key,
        "--template",
        &ca_info,
        "--outfile",
        &ca_cert,
    ])?;
    for name in NAMES {
        let (own, info) = (file(&format!("{name}-key.pem")), file(&format!("{name}.info")));
        let text = format!("cn = router {name}\ndns_name = localhost\nip_address = 127.0.0.1\n");
        let uses = "tls_www_server\ntls_www_client\nsigning_key\nexpiration_days = 3650\n";
        fs::write(&info, text + uses)?;
        key(name)?;
        certtool(&[
            "--generate-certificate",
            "--load-ca-certificate",
            &ca_cert,
            "--load-ca-privkey",
            &ca_key,
            "--load-privkey",
            &own,
            "--template",
            &info,
            "--outfile",
            &file(&format!("{name}-cert.pem")),
        ])?;
    }
    Ok(())
}

fn explain(running: &[Running]) {
    let program = place::program("storagerouter");
    let program = program.display();
    println!();
    println!("Three storage routers, one cluster, TLS between them:");
    for Running { name, router, .. } in running {
        println!(
            "  {name}   API {}   NBD 127.0.0.1:{}   {}",
            router.api(),
            router.nbd_port,
            router.folder.display()
        );
    }
    let Some(first) = running.first() else { return };
    let (api, pool) = (first.router.api(), first.router.folder.with_file_name("pool"));
    println!();
    println!("Watch them, in another shell:");
    println!("  watch -n 1 '{program} cluster status --api {api}'");
    println!();
    println!("Use them:");
    println!("  {program} vpool create demo --backend directory --path {} --api {api}", pool.display());
    println!("  {program} vdisk create disk1 --vpool demo --size 10GiB --api {api}");
    println!("  nbdinfo nbd://127.0.0.1:{}/demo/disk1", first.router.nbd_port);
    println!();
    println!("Kill one; it is started again here, and the others go on meanwhile:");
    println!("  kill -9 \"$(cat '{}')\"", first.router.file("router.pid").display());
    println!();
    println!("Ctrl-C stops them all.");
    // The test that drives this through a pipe waits for the last line.
    let _ = std::io::stdout().flush();
}
