//! Other people's NBD clients over all that the server offers: libnbd, qemu, fio, and the NBD
//! project's own tester; over TCP, over the socket file, and with TLS.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use tests::reference::Reference;
use tests::router::Config;
use tests::setup::{DISK, Kind, Setup};
use tests::tls::Authority;
use tests::tools::{command, find, need, run, run_within, scratch, source};

/// Runs the reference tester. It prints megabytes, so only its end is shown.
fn tester(arguments: &[&str]) -> Result<()> {
    let program =
        find("nbd-tester-client").context("nbd-tester-client is not built: `cargo xtask packages`")?;
    let mut tester = command(&program);
    tester.args(arguments);
    let ran = run_within(240, tester)?;
    let said = format!("{}{}", ran.stdout, ran.stderr).replace('\r', "\n");
    let end: Vec<&str> = said.lines().rev().take(5).collect();
    ensure!(ran.status.success(), "nbd-tester-client {arguments:?}: {}: {end:?}", ran.status);
    Ok(())
}

fn trace(name: &str) -> Result<String> {
    Ok(find("nbd-tester-client").context("tester")?.with_file_name(name).display().to_string())
}

/// The tester's whole set; each export must be fresh and of at least 64 MiB.
fn reference_tester(port: u16, fresh: [&str; 2], tls: &[&str]) -> Result<()> {
    let port = port.to_string();
    let with = |more: &[&str]| {
        let mut all = more.to_vec();
        all.extend(tls);
        all.extend(["127.0.0.1", &port]);
        tester(&all)
    };
    with(&["-N", fresh[0], "-i", "-t", &trace("integrity-test.tr")?]).context("integrity")?;
    with(&["-N", fresh[1], "-i", "-t", &trace("integrityhuge-test.tr")?]).context("huge requests")?;
    with(&["-N", fresh[0]]).context("reads")?;
    with(&["-N", fresh[0], "-w", "-f"]).context("writes and flushes")?;
    with(&["-N", fresh[0], "-o"]).context("a request that is too long")?;
    if tls.is_empty() {
        with(&["-N", fresh[0], "-h"]).context("handshake")?;
    }
    Ok(())
}

/// libnbd's, qemu's and fio's clients on a fresh export of 64 MiB.
fn clients(uri: &str, folder: &Path, reference: bool) -> Result<()> {
    let script = source("scripts").join("nbd_commands.py").display().to_string();
    let mut arguments = vec![script.as_str(), uri];
    if reference {
        arguments.push("reference");
    }
    run("/usr/bin/python3", &arguments).context("libnbd, all commands")?;
    run("nbdinfo", ["--json", uri])?.json()?;
    run("nbdinfo", ["--map", uri])?;
    run("qemu-img", ["info", uri])?;
    let qemu_io = |commands: &[&str]| {
        let mut all = vec!["-f", "raw"];
        for command in commands {
            all.extend(["-c", command]);
        }
        all.push(uri);
        let said = run("qemu-io", &all)?.stdout;
        ensure!(!said.contains("Pattern verification failed"), "qemu-io {commands:?}: {said}");
        Ok(())
    };
    qemu_io(&[
        "write -z 0 64M",
        "write -P 0xab 0 64k",
        "write -P 0xcd 4096 512",
        "read -P 0xcd 4096 512",
        "read -P 0xab 4608 1k",
        "write -z 64k 64k",
        "read -P 0 64k 64k",
        "write -z -u 256k 64k",
        "read -P 0 256k 64k",
        "write -f -P 1 128k 4k",
        "read -P 1 128k 4k",
        "discard 256k 64k",
        "flush",
    ])?;
    qemu_io(&[
        "write -P 0x11 1 1",
        "read -P 0x11 1 1",
        "write -P 0x22 4095 2",
        "read -P 0x22 4095 2",
        "read -P 0xab 2 4000",
    ])?;
    let (image, back) = (folder.join("conformance"), folder.join("conformance-back"));
    let mut bytes = vec![0; 64 << 20];
    let mut random = fastrand::Rng::with_seed(3);
    random.fill(&mut bytes[8 << 20..32 << 20]);
    std::fs::write(&image, &bytes)?;
    let (image, back) = (image.display().to_string(), back.display().to_string());
    let same = || -> Result<()> {
        let _ = std::fs::remove_file(&back);
        run("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, &back])?;
        let read = std::fs::read(&back)?;
        ensure!(read[..bytes.len()] == bytes[..], "what came out is not what went in");
        Ok(())
    };
    run("nbdcopy", [&image, uri])?;
    same().context("nbdcopy")?;
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", "-m", "16", "-W", &image, uri])?;
    same().context("qemu-img convert")?;
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &image, uri])?;
    let bench =
        ["bench", "-f", "raw", "-t", "writethrough", "-w", "-c", "200", "-d", "16", "-s", "4096", uri];
    run("qemu-img", bench).context("FUA from qemu")?;
    fio(
        uri,
        &[
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--bs_unaligned=0",
            "--blockalign=512",
            "--iodepth=16",
            "--size=48M",
            "--verify_backlog=64",
        ],
    )?;
    fio(
        uri,
        &["--rw=randrw", "--bs=4k", "--iodepth=8", "--numjobs=4", "--offset_increment=12M", "--size=12M"],
    )?;
    fio(uri, &["--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=8M", "--fsync=16"])
}

/// fio with verification. It may fail after one request and still print numbers: both are looked at.
fn fio(uri: &str, arguments: &[&str]) -> Result<()> {
    let uri = format!("--uri={uri}");
    let mut all = vec![
        "--name=v",
        "--ioengine=nbd",
        &uri,
        "--thread",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--randrepeat=0",
        "--output-format=json",
    ];
    all.extend(arguments);
    let said = run("fio", &all)?.stdout;
    let json: serde_json::Value = serde_json::from_str(&said[said.find('{').context("no JSON from fio")?..])?;
    for job in json["jobs"].as_array().context("jobs")? {
        let ios = job["write"]["total_ios"].as_u64().unwrap_or(0);
        ensure!(job["error"] == 0 && ios > 100, "fio {arguments:?}: error {}, {ios} writes", job["error"]);
    }
    Ok(())
}

fn tools() -> Result<()> {
    need(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio", "nbd-tester-client"])
}

fn with_disks(name: &str, change: impl FnOnce(Config) -> Config) -> Result<Setup> {
    tools()?;
    let setup = Setup::with(name, Kind::Directory, "64MiB", change)?;
    for disk in ["a", "b", "u"] {
        setup.router.cli(&["vdisk", "create", disk, "--vpool", "p", "--size", "64MiB"])?;
    }
    Ok(setup)
}

#[test]
fn clients_agree_with_the_server_over_tcp_and_the_socket_file() -> Result<()> {
    let setup = with_disks("conf", |config| config)?;
    clients(&setup.uri(), setup.folder.path(), false).context("TCP")?;
    clients(&setup.router.unix_uri("p/u"), setup.folder.path(), false).context("socket file")?;
    reference_tester(setup.router.config.nbd_port, ["p/a", "p/b"], &[]).context("reference tester")?;
    setup.router.drain(DISK)?;
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}

#[test]
#[ignore = "shows that the harness itself is sound, over nbdkit"]
fn reference_agrees_with_the_clients() -> Result<()> {
    tools()?;
    let folder = scratch("confref")?;
    let one = || Reference::nbdkit(folder.path(), &["memory", "64M"]);
    clients(&one()?.uri(), folder.path(), true)?;
    let server = one()?;
    let tests::nbd::Endpoint::Tcp(address) = server.endpoint() else { unreachable!() };
    let port = address.rsplit_once(':').context("port")?.1;
    tester(&["-N", "x", "-i", "-t", &trace("integrity-test.tr")?, "127.0.0.1", port])?;
    run("qemu-io", ["-f", "raw", "-c", "write -z 0 64M", &server.uri()])?;
    tester(&["-N", "x", "-i", "-t", &trace("integrityhuge-test.tr")?, "127.0.0.1", port])?;
    tester(&["-N", "x", "-w", "-f", "127.0.0.1", port])?;
    tester(&["-N", "x", "-o", "127.0.0.1", port])?;
    tester(&["-N", "x", "-h", "127.0.0.1", port])
}

#[test]
fn tls_is_spoken_with_certificates_and_nothing_else_when_required() -> Result<()> {
    let folder = scratch("tls")?;
    let (good, other) =
        (Authority::new(&folder.path().join("good"))?, Authority::new(&folder.path().join("other"))?);
    let file = |name: &str| good.file(name).display().to_string();
    let setup = with_disks("tls", |config| {
        config
            .set("nbd.tls=require")
            .set(&format!("nbd.tls_cert={}", file("server-cert.pem")))
            .set(&format!("nbd.tls_key={}", file("server-key.pem")))
            .set(&format!("nbd.tls_client_ca={}", file("ca-cert.pem")))
    })?;
    let port = setup.router.config.nbd_port;
    let uri = |folder: &Path| format!("nbds://localhost:{port}/{DISK}?tls-certificates={}", folder.display());
    run("nbdinfo", [uri(&good.folder)])?;
    run(
        "/usr/bin/python3",
        [source("scripts").join("nbd_commands.py").display().to_string(), uri(&good.folder)],
    )?;
    let qemu = |authority: &Authority| {
        let object = format!("tls-creds-x509,id=t0,dir={},endpoint=client", authority.folder.display());
        let image = format!("driver=nbd,host=localhost,port={port},export={DISK},tls-creds=t0");
        let mut info = command("qemu-img");
        info.args(["info", "--object", &object, "--image-opts", &image]);
        run_within(30, info)
    };
    qemu(&good)?.ok()?;
    let certificates = [
        "-C",
        &file("client-cert.pem"),
        "-K",
        &file("client-key.pem"),
        "-A",
        &file("ca-cert.pem"),
        "-H",
        "localhost",
    ];
    reference_tester(port, ["p/a", "p/b"], &certificates).context("reference tester with TLS")?;

    // Without TLS, without a certificate, and with one of another authority: refused.
    ensure!(!qemu(&other)?.status.success(), "a client of another authority was let in");
    let plain = format!("nbd://localhost:{port}/{DISK}");
    let mut info = command("nbdinfo");
    info.arg(&plain);
    ensure!(!run_within(30, info)?.status.success(), "a client without TLS was let in");
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare)?;
    std::fs::copy(good.file("ca-cert.pem"), bare.join("ca-cert.pem"))?;
    let mut info = command("nbdinfo");
    info.arg(uri(&bare));
    ensure!(!run_within(30, info)?.status.success(), "a client without a certificate was let in");
    run("nbdinfo", [uri(&good.folder)]).context("after the refused ones")?;
    Ok(())
}

#[test]
fn exports_are_listed_and_found_by_short_name_only_while_it_is_unique() -> Result<()> {
    let setup = with_disks("names", |config| config)?;
    let list =
        run("nbdinfo", ["--list", &format!("nbd://127.0.0.1:{}", setup.router.config.nbd_port)])?.stdout;
    for name in ["p/v", "p/a", "p/b", "p/u"] {
        ensure!(list.contains(&format!("\"{name}\"")), "{name} is not in the list: {list}");
    }
    run("nbdinfo", [setup.router.uri("v")]).context("short name")?;
    let place = setup.path("second").display().to_string();
    setup.router.cli(&["vpool", "create", "q", "--backend", "directory", "--path", &place])?;
    setup.router.cli(&["vdisk", "create", "v", "--vpool", "q", "--size", "128MiB"])?;
    let refused = |name: &str| -> Result<()> {
        let mut info = command("nbdinfo");
        info.arg(setup.router.uri(name));
        ensure!(!run_within(30, info)?.status.success(), "an export named {name} should not be there");
        Ok(())
    };
    refused("v")?;
    refused("nobody")?;
    refused("p/../q/v")?;
    refused("")?;
    let size = run("nbdinfo", ["--size", &setup.router.uri("q/v")])?.stdout;
    ensure!(size.trim() == (128 << 20).to_string(), "q/v has {size} bytes");
    Ok(())
}

#[test]
fn a_vdisk_grows_online_and_new_connections_see_it() -> Result<()> {
    let setup = with_disks("grow", |config| config)?;
    let uri = setup.uri();
    run("qemu-io", ["-f", "raw", "-c", "write -P 7 63M 1M", &uri])?;
    setup.router.cli(&["vdisk", "resize", DISK, "--size", "96MiB"])?;
    let size = run("nbdinfo", ["--size", &uri])?.stdout;
    ensure!(size.trim() == (96 << 20).to_string(), "a new connection sees {size} bytes");
    let said = run(
        "qemu-io",
        ["-f", "raw", "-c", "read -P 7 63M 1M", "-c", "read -P 0 64M 32M", "-c", "write -P 8 95M 1M", &uri],
    )?;
    ensure!(!said.stdout.contains("failed"), "{}", said.stdout);
    setup
        .router
        .try_cli(&["vdisk", "resize", DISK, "--size", "64MiB"])?
        .refused(&["shrink", "smaller", "grow"])?;
    Ok(())
}

#[test]
fn a_read_only_vdisk_is_read_and_not_written() -> Result<()> {
    let setup = with_disks("readonly", |config| config)?;
    let uri = setup.uri();
    run("qemu-io", ["-f", "raw", "-c", "write -P 9 0 1M", &uri])?;
    setup.router.cli(&["vdisk", "set", DISK, "--read-only", "true"])?;
    run("nbdinfo", ["--is", "readonly", &uri])?;
    let said = run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 9 0 1M", &uri])?;
    ensure!(!said.stdout.contains("failed"), "{}", said.stdout);
    let nbdsh = ["-c", &format!("h.set_strict_mode(0); h.connect_uri('{uri}'); h.pwrite(b'x' * 512, 0)")]
        .map(String::from);
    let mut writer = command("nbdsh");
    writer.args(nbdsh);
    let wrote = run_within(30, writer)?;
    ensure!(!wrote.status.success() && wrote.stderr.contains("not permitted"), "a write: {}", wrote.stderr);
    setup.router.cli(&["vdisk", "set", DISK, "--read-only", "false"])?;
    run("qemu-io", ["-f", "raw", "-c", "write -P 8 0 1M", &uri])?;
    Ok(())
}

/// `SR_NBDINFO` is the nbdinfo of libnbd 1.22 or newer, or a command that runs it:
/// `chroot /srv/trixie nbdinfo`.
#[test]
#[ignore = "needs a newer libnbd than Debian 12 has: set SR_NBDINFO to its nbdinfo"]
fn a_libnbd_that_knows_extended_headers_speaks_them() -> Result<()> {
    let said = std::env::var("SR_NBDINFO").context("SR_NBDINFO is not set")?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let (program, before) = words.split_first().context("SR_NBDINFO is empty")?;
    let setup = with_disks("extended", |config| config)?;
    let uri = setup.uri();
    run("qemu-io", ["-f", "raw", "-c", "write -P 9 1M 1M", &uri])?;
    let nbdinfo = |arguments: &[&str]| run(program, [before, arguments].concat());
    let told = nbdinfo(&[&uri])?.stdout;
    ensure!(told.contains("using extended packets"), "{told}");
    let map = nbdinfo(&["--map", &uri])?.stdout;
    let second = map.lines().nth(1).unwrap_or_default();
    let words: Vec<&str> = second.split_whitespace().collect();
    ensure!(words.starts_with(&["1048576", "1048576", "0"]), "the map is {map}");
    Ok(())
}
