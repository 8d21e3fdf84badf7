//! The edge protocol's commands over a real router: copies, measurements, and a local NBD endpoint under which the
//! router, or the endpoint itself, is killed.

use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tests::edge::{EdgeServe, address, edge, edge_command, try_edge};
use tests::model::Promise;
use tests::setup::{DISK, Kind, Setup};
use tests::time::{Stopwatch, eventually, pause};
use tests::tls::Authority;
use tests::tools::{Ran, command, need, run, run_within, scratch};
use tests::workload::{Plan, Subject};

const MIB: usize = 1 << 20;

fn setup(name: &str) -> Result<Setup> {
    need(&["fio", "qemu-img", "nbdinfo", "nbdcopy"])?;
    Setup::with(name, Kind::Directory, "64MiB", |config| {
        config
            .set("volumedriver.journal_mib=256")
            .set("volumedriver.segment_mib=8")
            .set("volumedriver.seal_age_seconds=1")
            .set("edge.lease_seconds=2")
            .set("edge.idle_seconds=2")
    })
}

/// 64 MiB, a quarter of it random, the rest zeroes.
fn image(path: &Path, seed: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 64 * MIB];
    let mut random = fastrand::Rng::with_seed(seed);
    let from = random.usize(1..40) * MIB;
    random.fill(&mut bytes[from..from + 16 * MIB]);
    // One byte alone, and the last one.
    bytes[from / 2] = 1;
    bytes[64 * MIB - 1] = 2;
    std::fs::write(path, &bytes)?;
    Ok(bytes)
}

fn exit_code(ran: &Ran) -> i32 {
    ran.status.code().unwrap_or(-1)
}

/// Bytes of a vDisk that are no holes, by its map.
fn stored(uri: &str) -> Result<usize> {
    let map = run("nbdinfo", ["--map", "--json", uri])?.json()?;
    let runs = map.as_array().context("a map")?;
    let stored = |run: &&serde_json::Value| run["type"].as_u64().is_some_and(|kind| kind & 1 == 0);
    Ok(runs.iter().filter(stored).filter_map(|run| run["length"].as_u64()).sum::<u64>() as usize)
}

/// What was acknowledged would survive a power cut.
fn is_flushed(setup: &Setup) -> Result<()> {
    let frontiers = setup.router.show(DISK)?["frontiers"].clone();
    ensure!(frontiers["accepted"].as_u64() > Some(0), "{frontiers}");
    ensure!(frontiers["synced"] == frontiers["accepted"], "{frontiers}");
    Ok(())
}

#[test]
fn copies_are_identical_and_as_thin_as_what_they_are_of() -> Result<()> {
    let setup = setup("edge-copy")?;
    let router = &setup.router;
    router.cli(&["vdisk", "create", "w", "--vpool", "p", "--size", "64MiB"])?;
    router.cli(&["vdisk", "create", "large", "--vpool", "p", "--size", "80MiB"])?;
    let path = |name: &str| setup.path(name).display().to_string();
    let first = image(&setup.path("first"), 1)?;
    edge(router, &["copy", &path("first"), DISK])?;
    is_flushed(&setup)?;
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &path("first"), &setup.uri()])?;
    let thin = stored(&setup.uri())?;
    ensure!((16 * MIB..17 * MIB).contains(&thin), "{thin} bytes are stored");

    edge(router, &["copy", DISK, &path("back")])?;
    ensure!(std::fs::read(setup.path("back"))? == first, "what came out is not what went in");
    let taken = std::fs::metadata(setup.path("back"))?.blocks() as usize * 512;
    ensure!(taken < 18 * MIB, "the file takes {taken} bytes");

    // What was there before goes, also where the new image has a hole.
    let second = image(&setup.path("second"), 2)?;
    let shell = |line: String| {
        let mut shell = command("sh");
        shell.args(["-c", &line]);
        run_within(60, shell)?.ok()
    };
    let words = |words: &[&str]| -> Result<String> {
        let command = edge_command(&address(router), words)?;
        let all = std::iter::once(command.get_program()).chain(command.get_args());
        Ok(all.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
    };
    shell(format!("cat {} | {}", path("second"), words(&["copy", "-", DISK])?))?;
    shell(format!("{} | cmp - {}", words(&["copy", DISK, "-"])?, path("second")))?;
    let thin = stored(&setup.uri())?;
    ensure!((16 * MIB..17 * MIB).contains(&thin), "{thin} bytes are stored");

    // A snapshot, to another vDisk, whose rest stays.
    router.cli(&["vdisk", "snapshot", DISK, "now"])?;
    edge(router, &["copy", "p/v@now", "p/w"])?;
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &path("second"), &router.uri("p/w")])?;
    run("qemu-io", ["-f", "raw", "-c", "write -P 7 64M 16M", &router.uri("p/large")])?;
    let said = edge(router, &["copy", "p/w", "p/large"])?.stderr;
    ensure!(said.contains("16 MiB") && said.contains("as they were"), "{said}");
    run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 7 64M 16M", &router.uri("p/large")])?;

    // A file whose end is not one of a block.
    std::fs::write(setup.path("odd"), &second[..40 * MIB + 77])?;
    run("qemu-io", ["-f", "raw", "-c", "write -P 9 0 64M", &router.uri("p/w")])?;
    edge(router, &["copy", &path("odd"), "p/w"])?;
    edge(router, &["copy", "p/w", &path("back"), "--overwrite"])?;
    let back = std::fs::read(setup.path("back"))?;
    ensure!(back[..40 * MIB + 77] == second[..40 * MIB + 77], "its bytes");
    ensure!(
        back.len() == 64 * MIB && back[40 * MIB + 77..].iter().all(|byte| *byte == 9),
        "what is behind it"
    );
    Ok(())
}

#[test]
fn info_and_bench_say_what_there_is() -> Result<()> {
    let setup = setup("edge-info")?;
    let router = &setup.router;
    let told = edge(router, &["info", DISK, "--json"])?.json()?;
    ensure!(told["size_bytes"] == 64 << 20 && told["cluster_size_bytes"] == 4096, "{told}");
    ensure!(told["read_only"] == false && told["in_sync"] == true && told["forwarded"] == false, "{told}");
    ensure!(told["epoch"].as_u64() > Some(0) && told["address"] == address(router), "{told}");
    router.cli(&["vdisk", "set", DISK, "--read-only", "true"])?;
    let unix = format!("unix:{}", router.config.data_dir.join("edge.sock").display());
    // Once the vDisk was closed here, which is soon after the last client.
    eventually("a read-only vDisk", 10, || {
        let told = run_within(30, edge_command(&unix, &["info", DISK])?)?.ok()?.stdout;
        let read_only = told.lines().any(|line| line.starts_with("read only") && line.ends_with("yes"));
        ensure!(read_only && told.contains("64 MiB") && told.contains(&unix), "{told}");
        Ok(())
    })?;
    router.cli(&["vdisk", "set", DISK, "--read-only", "false"])?;
    let listed = router.show(DISK)?;
    ensure!(listed["edge"] == serde_json::json!([address(router), unix]), "{listed}");

    let bench = ["bench", DISK, "--seconds", "1", "--depth", "8", "--json"];
    let told = edge(router, &bench)?.json()?;
    ensure!(told["read"]["iops"].as_f64() > Some(100.0) && told["write"].is_null(), "{told}");
    let mixed = [&bench[..], &["--read-percent", "50", "--destroy-data", "--block-size", "16KiB"]].concat();
    let told = eventually("a writable vDisk", 10, || edge(router, &mixed)?.json())?;
    let (p50, p99) = (told["write"]["p50_us"].as_f64(), told["write"]["p99_us"].as_f64());
    ensure!(p50 > Some(0.0) && p99 >= p50, "{told}");
    ensure!(stored(&setup.uri())? > MIB, "nothing was written");
    Ok(())
}

#[test]
fn what_can_not_be_is_refused_with_its_reason() -> Result<()> {
    let setup = setup("edge-bad")?;
    let router = &setup.router;
    router.cli(&["vdisk", "create", "small", "--vpool", "p", "--size", "1MiB"])?;
    let path = |name: &str| setup.path(name).display().to_string();
    std::fs::write(setup.path("file"), vec![1; 2 * MIB])?;
    let refused = |code: i32, words: &[&str], parts: &[&str]| -> Result<()> {
        let ran = try_edge(router, words)?;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(exit_code(&ran) == code, "{words:?} ended with {}: {said}", ran.status);
        for part in parts {
            ensure!(said.contains(part), "{words:?}: '{part}' is not in: {said}");
        }
        Ok(())
    };
    let (file, fresh) = (path("file"), path("fresh"));
    refused(4, &["copy", DISK, &file], &[&file, "--overwrite"])?;
    refused(4, &["copy", "p/small", &file], &["is larger than the copy"])?;
    refused(4, &["copy", &file, "p/small"], &["2 MiB", "1 MiB", "resize"])?;
    refused(4, &["copy", DISK, "p/small"], &["64 MiB", "1 MiB"])?;
    refused(2, &["copy", DISK, DISK], &["itself"])?;
    refused(2, &["copy", &file, &fresh], &["neither"])?;
    refused(2, &["copy", DISK, "image.raw"], &["./image.raw"])?;
    refused(2, &["copy", &file, "p/v@now"], &["snapshot"])?;
    refused(3, &["copy", &path("none"), DISK], &["none"])?;
    refused(3, &["copy", "p/none", &fresh], &["'none'"])?;
    refused(3, &["info", "p/none"], &["'none'"])?;
    refused(2, &["info", "v"], &["VPOOL/VDISK"])?;
    refused(2, &["bench", DISK, "--read-percent", "99"], &["--destroy-data"])?;
    refused(2, &["bench", DISK, "--block-size", "1000"], &["512"])?;
    refused(2, &["bench", "p/small", "--block-size", "2MiB"], &["1 MiB"])?;
    refused(2, &["serve"], &["--unix", "--listen"])?;
    refused(2, &["serve", "--listen", "0.0.0.0:0"], &["--insecure", "127.0.0.1"])?;
    refused(4, &["serve", "--listen", &address(router)], &["--listen", "in use"])?;
    refused(2, &["serve", "--unix", &fresh, "v"], &["VPOOL/VDISK"])?;
    refused(2, &["info", DISK, "--tls-cert", &file], &["--tls-key"])?;
    ensure!(!setup.path("fresh").exists(), "a copy that failed left a file");
    // A pipe tells only on its way that it does not fit; and what is left of a copy is no file.
    let mut piped = command("sh");
    let program = tests::tools::own_program("storagerouter")?;
    let line = format!("cat {file} | {} edge copy - p/small --router {}", program.display(), address(router));
    piped.args(["-c", &line]);
    let ran = run_within(30, piped)?;
    ensure!(exit_code(&ran) == 4 && ran.stderr.contains("1 MiB"), "{} {}", ran.status, ran.stderr);

    // Somebody else has it; nobody is there.
    let serve = EdgeServe::start(&address(router), setup.folder.path(), &[])?;
    let subject = Subject::new(serve.endpoint(), DISK, 64)?;
    let running = subject.start(&Plan { connections: 1, depth: 1, ..Plan::default() })?;
    refused(4, &["info", DISK, "--wait", "1"], &["edge serve", "process", "waiting"])?;
    subject.gather(running)?;
    // Its client has gone: so does the attachment.
    eventually("it is detached", 5, || refused(0, &["info", DISK, "--wait", "0"], &["64 MiB"]))?;
    let nobody = run_within(30, edge_command("127.0.0.1:1", &["info", DISK, "--wait", "1"])?)?;
    ensure!(exit_code(&nobody) == 5 && nobody.stderr.contains("127.0.0.1:1"), "{}", nobody.stderr);
    let wrong = run_within(30, edge_command("nowhere", &["info", DISK])?)?;
    ensure!(exit_code(&wrong) == 2 && wrong.stderr.contains("'nowhere'"), "{}", wrong.stderr);
    Ok(())
}

/// fio that writes the whole vDisk at random and verifies it, for some seconds.
fn fio(uri: &str, rate: &str) -> Command {
    let mut fio = command("fio");
    fio.args([
        "--name=v",
        "--ioengine=nbd",
        "--thread",
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--iodepth=16",
    ]);
    fio.args(["--size=64M", "--verify=crc32c", "--verify_state_save=0", "--randrepeat=0", "--fsync=64"]);
    fio.args(["--output-format=json", &format!("--rate={rate}"), &format!("--uri={uri}")]);
    fio
}

fn fio_is_well(ran: Ran) -> Result<()> {
    let ran = ran.ok()?;
    let json: serde_json::Value =
        serde_json::from_str(&ran.stdout[ran.stdout.find('{').context("no JSON")?..])?;
    for job in json["jobs"].as_array().context("jobs")? {
        let ios = job["write"]["total_ios"].as_u64().unwrap_or(0);
        ensure!(job["error"] == 0 && ios > 1000, "fio: error {}, {ios} writes", job["error"]);
    }
    Ok(())
}

#[test]
fn a_router_that_is_killed_under_fio_is_latency_and_no_error() -> Result<()> {
    let mut setup = setup("edge-kill")?;
    let mut serve = EdgeServe::start(&address(&setup.router), setup.folder.path(), &[DISK])?;
    let uri = serve.uri(DISK);
    let fio = std::thread::spawn(move || run_within(60, fio(&uri, ",10m")));
    for round in 0..3 {
        pause(700);
        ensure!(!fio.is_finished(), "fio was too fast for round {round}");
        let watch = Stopwatch::start();
        setup.router.kill9()?;
        setup.router.start_again()?;
        println!("round {round}: the router was away for {:.2} s", watch.seconds());
    }
    let Ok(ran) = fio.join() else { bail!("fio's thread ended") };
    fio_is_well(ran?)?;
    let log = serve.log();
    ensure!(log.contains("left a router") && !log.contains("request failed"), "{log}");
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &serve.uri(""), &setup.uri()])?;
    ensure!(serve.terminate()?.success(), "edge serve: {}", serve.log());
    let log = serve.log();
    ensure!(log.contains("detached") && !log.contains("may be lost"), "{log}");
    is_flushed(&setup)?;
    // It was given up: nobody has to wait for a lease.
    edge(&setup.router, &["info", DISK, "--wait", "0"])?;
    Ok(())
}

#[test]
fn an_endpoint_that_is_killed_waits_for_its_own_lease_and_has_lost_nothing() -> Result<()> {
    let setup = setup("edge-serve")?;
    let mut serve = EdgeServe::start(&address(&setup.router), setup.folder.path(), &[])?;
    let attached = |serve: &EdgeServe| serve.log().matches(": attached export").count();
    let mut subject = Subject::new(serve.endpoint(), DISK, 8192)?;
    for seed in 0..2 {
        let running = subject.start(&Plan { seed, ..Plan::default() })?;
        running.wait_past(500)?;
        ensure!(seed > 0 || attached(&serve) == 1, "four connections share one attachment: {}", serve.log());
        serve.kill9()?;
        subject.gather(running)?;
        serve.start_again()?;
        subject.settle(Promise::Everything).context("through the next one")?;
        ensure!(serve.log().contains("waiting up to 30 s"), "{}", serve.log());
    }
    // All of it is in the router, also what it did not get the time to flush.
    subject.endpoint = setup.router.endpoint();
    subject.settle(Promise::Everything).context("from the router")
}

#[test]
fn an_endpoint_whose_vdisk_was_taken_fails_who_has_it_and_serves_who_comes() -> Result<()> {
    let setup = setup("edge-fenced")?;
    let serve = EdgeServe::start(&address(&setup.router), setup.folder.path(), &[DISK])?;
    let subject = Subject::new(serve.endpoint(), DISK, 64)?;
    let running = subject.start(&Plan { connections: 1, depth: 1, ..Plan::default() })?;
    running.wait_past(10)?;
    serve.freeze()?;
    // Nothing of it was heard for the lease: somebody else may have the vDisk, and does.
    let taken =
        ["bench", DISK, "--read-percent", "0", "--block-size", "1MiB", "--seconds", "1", "--destroy-data"];
    edge(&setup.router, &taken)?;
    serve.thaw()?;
    eventually("who had it before hears so", 10, || {
        ensure!(serve.log().contains("request failed"), "{}", serve.log());
        Ok(())
    })?;
    subject.gather(running)?;
    run("qemu-io", ["-f", "raw", "-c", "write -P 5 0 64M", "-c", "read -P 5 0 64M", &serve.uri(DISK)])?;
    run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 5 0 64M", &setup.uri()])?;
    Ok(())
}

#[test]
fn tls_is_spoken_where_it_is_required() -> Result<()> {
    let folder = scratch("edge-tls")?;
    let good = Authority::new(&folder.path().join("good"))?;
    let file = |name: &str| good.file(name).display().to_string();
    let setup = Setup::with("edge-tls", Kind::Directory, "64MiB", |config| {
        config
            .set("edge.tls=require")
            .set(&format!("edge.tls_cert={}", file("server-cert.pem")))
            .set(&format!("edge.tls_key={}", file("server-key.pem")))
            .set(&format!("edge.tls_client_ca={}", file("ca-cert.pem")))
    })?;
    let router = format!("localhost:{}", setup.router.config.edge_port);
    let info = |more: &[&str]| {
        let words = [&["info", DISK, "--wait", "1"], more].concat();
        run_within(30, edge_command(&router, &words)?)
    };
    let (ca, cert, key) = (file("ca-cert.pem"), file("client-cert.pem"), file("client-key.pem"));
    info(&["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key])?.ok()?;
    for without in [&[][..], &["--tls-ca", &ca], &["--tls-ca", &cert, "--tls-cert", &cert, "--tls-key", &key]]
    {
        let ran = info(without)?;
        ensure!(
            exit_code(&ran) == 5 && ran.stderr.contains(&router),
            "{without:?}: {} {}",
            ran.status,
            ran.stderr
        );
    }
    let none = info(&["--tls-ca", &file("none.pem")])?;
    ensure!(exit_code(&none) == 2 && none.stderr.contains("none.pem"), "{} {}", none.status, none.stderr);
    Ok(())
}
