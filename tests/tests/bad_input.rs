//! Bad input and bad luck: each is a clear error, or a wait that ends by itself, and nothing is lost.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tests::model::Promise;
use tests::router::{Config, Router};
use tests::setup::{DISK, Kind, Setup};
use tests::tools::{run, scratch};
use tests::workload::Plan;

const BLOCKS: usize = 8192;

#[test]
fn an_unknown_configuration_key_is_refused_by_name() -> Result<()> {
    let folder = scratch("bad")?;
    let data = folder.path().join("data");
    let message = Config::new(&data)?.set("nbd.lissten=127.0.0.1:1").must_refuse(&["lissten"])?;
    ensure!(message.lines().count() < 12, "a person must be able to read it: {message}");
    let file = folder.path().join("config.toml");
    fs::write(&file, "[volumedriver]\njournal_mb = 5\n")?;
    let mut command = Config::new(&data)?.command()?;
    command.arg("--config").arg(&file);
    tests::tools::run_within(30, command)?.refused(&["journal_mb"])?;
    ensure!(!data.join("format").exists(), "a refused start has made a data directory");
    Ok(())
}

#[test]
fn a_taken_port_is_named() -> Result<()> {
    let folder = scratch("port")?;
    let config = Config::new(&folder.path().join("data"))?;
    for port in [config.nbd_port, config.api_port] {
        let _taken = TcpListener::bind(("127.0.0.1", port))?;
        config.must_refuse(&[&port.to_string()])?;
    }
    // And with the ports free again it starts on what the refused starts have left.
    Router::start(config)?.terminate()?;
    Ok(())
}

#[test]
fn a_data_directory_of_a_newer_format_is_refused_and_left_alone() -> Result<()> {
    let mut setup = Setup::small("newer", Kind::Directory, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    subject.run_for(&Plan::default(), 100)?;
    setup.router.kill9()?;
    let file = setup.router.config.data_dir.join("format");
    let text = fs::read_to_string(&file)?;
    let mut format: serde_json::Value = serde_json::from_str(&text)?;
    format["format"] = 4711.into();
    fs::write(&file, format.to_string())?;
    let tree = |path: &Path| run("find", [path.as_os_str(), "-printf".as_ref(), "%P %s %T@\n".as_ref()]);
    let before = tree(&setup.router.config.data_dir.join("journal"))?.stdout;
    setup.router.config.must_refuse(&["4711"])?;
    ensure!(tree(&setup.router.config.data_dir.join("journal"))?.stdout == before, "the journal was changed");
    fs::write(&file, text)?;
    setup.router.start_again()?;
    subject.settle(Promise::Everything)
}

#[test]
fn a_data_directory_has_one_router() -> Result<()> {
    let mut setup = Setup::small("held", Kind::Directory, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    let running = subject.start(&Plan::default())?;
    let second = Config::new(&setup.router.config.data_dir)?;
    let message = second.must_refuse(&["held", "another", "lock", "in use"])?;
    ensure!(
        message.contains(&setup.router.config.data_dir.display().to_string()),
        "it names the directory: {message}"
    );
    ensure!(subject.gather(running)? > 0, "the first one stopped serving");
    setup.router.must_run()?;
    subject.settle(Promise::Everything)
}

#[test]
fn sizes_and_names_that_cannot_be_are_refused() -> Result<()> {
    let setup = Setup::small("names", Kind::Directory, "64MiB")?;
    let router = &setup.router;
    for size in ["0", "65TiB", "64TiB1", "-1", "1000", "lots", "999999999999999999999999TiB"] {
        router
            .try_cli(&["vdisk", "create", "bad", "--vpool", "p", &format!("--size={size}")])?
            .refused(&["size"])?;
    }
    let long = "n".repeat(300);
    for name in ["a/b", "/", "..", ".", "", "a b", "a\nb", "ü", "\u{1b}[31m", long.as_str()] {
        let create = ["vdisk", "create", "--vpool", "p", "--size", "64MiB", "--", name];
        let mut command = tests::tools::command(tests::tools::own_program("storagerouter")?);
        command.args(["vdisk", "--api", &router.api()]).args(&create[1..]);
        tests::tools::run_within(30, command)?.refused(&["name"])?;
    }
    let place = setup.path("elsewhere").display().to_string();
    router
        .try_cli(&["vpool", "create", "a/b", "--backend", "directory", "--path", &place])?
        .refused(&["name"])?;
    router.try_cli(&["vdisk", "create", "v", "--vpool", "p", "--size", "64MiB"])?.refused(&["exist"])?;
    router
        .try_cli(&["vdisk", "create", "v", "--vpool", "nobody", "--size", "64MiB"])?
        .refused(&["nobody"])?;
    router.try_cli(&["vdisk", "show", "p/nobody"])?.refused(&["nobody"])?;
    router
        .try_cli(&["vpool", "create", "r", "--backend", "directory", "--path", "/proc/no/such/place"])?
        .refused(&["/proc/no"])?;
    let disks = router.cli_json(&["vdisk", "list"])?;
    ensure!(disks["items"].as_array().context("items")?.len() == 1, "something was made after all: {disks}");
    // The largest one that can be.
    router.cli(&["vdisk", "create", "huge", "--vpool", "p", "--size", "64TiB"])?;
    let last = (64u64 << 40) - 4096;
    let said = run(
        "qemu-io",
        [
            "-f",
            "raw",
            "-c",
            &format!("write -P 9 {last} 4k"),
            "-c",
            &format!("read -P 9 {last} 4k"),
            &router.uri("p/huge"),
        ],
    )?;
    ensure!(!said.stdout.contains("failed"), "{}", said.stdout);
    Ok(())
}

#[test]
fn garbage_on_the_nbd_port_hurts_nobody_else() -> Result<()> {
    let mut setup = Setup::small("garbage", Kind::Directory, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    let running = subject.start(&Plan { connections: 2, ..Plan::default() })?;
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", setup.router.config.nbd_port))?;
        let mut bytes = vec![0; random.usize(1..4000)];
        random.fill(&mut bytes);
        if round % 2 == 0 {
            // Past the greeting, so that the option parser sees it.
            let mut start = 3u32.to_be_bytes().to_vec();
            start.extend(0x4948_4156_454f_5054u64.to_be_bytes());
            start.extend(random.u32(0..12).to_be_bytes());
            start.extend([random.u32(0..64), u32::MAX][usize::from(random.bool())].to_be_bytes());
            bytes.splice(0..0, start);
        }
        // The server may hang up while this is written: that is what it should do.
        let _ = stream.write_all(&bytes);
    }
    subject.gather(running)?;
    setup.router.must_run()?;
    ensure!(!setup.router.log().contains("panicked"), "something panicked:\n{}", setup.router.log());
    subject.settle(Promise::Everything)
}

/// The last record of the journal is torn, as a power cut would: what was flushed is there, and
/// the image is a prefix. Nothing is flushed behind it: to tear what was is damage, and refused.
#[test]
fn a_torn_journal_tail_costs_only_what_was_not_flushed() -> Result<()> {
    let mut setup = Setup::with("torn", Kind::Directory, "32MiB", |config| {
        config.set("volumedriver.seal_age_seconds=600")
    })?;
    let subject = setup.subject(BLOCKS)?;
    for seed in 1..=3 {
        subject.run_for(&Plan { seed, longest: 4, ..Plan::default() }, 60)?;
        run("qemu-io", ["-f", "raw", "-c", "flush", &setup.uri()])?;
        let flushed = subject.now();
        let unflushed = Plan { seed: seed + 10, longest: 4, connections: 1, depth: 1, hot: 0, syncs: false };
        subject.run_for(&unflushed, 60)?;
        setup.router.kill9()?;
        tear(&setup.router.config.data_dir.join("journal"))?;
        setup.router.start_again()?;
        subject.settle(Promise::PrefixWith(flushed)).with_context(|| format!("tear {seed}"))?;
    }
    subject.run_for(&Plan::default(), 100)?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    subject.settle(Promise::Everything)
}

/// Zeroes the last bytes that were written to the newest segment that holds any.
fn tear(journal: &Path) -> Result<()> {
    let mut segments = files(journal)?;
    segments.sort();
    for path in segments.iter().rev() {
        let bytes = fs::read(path)?;
        // A segment's own header is not its tail.
        let Some(end) = bytes.iter().rposition(|byte| *byte != 0).filter(|end| *end > 8192) else { continue };
        let start = end - 600;
        fs::OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all_at(&vec![0; end + 1 - start], start as u64)?;
        println!("tore {} from {start} to {end}", path.display());
        return Ok(());
    }
    anyhow::bail!("no segment in {} holds anything", journal.display())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// One bit of one SCO flips: reading what it held is an I/O error, everything else reads right, and
/// both the log and fsck name the object. With the bit back, all is well.
#[test]
fn a_flipped_bit_in_a_sco_is_an_error_that_names_the_object() -> Result<()> {
    let mut setup = Setup::unscrubbed("flip", Kind::Directory, "32MiB")?;
    let subject = setup.subject(BLOCKS)?;
    subject.run_for(&Plan { longest: 32, hot: 0, ..Plan::default() }, 500)?;
    setup.router.drain(DISK)?;
    setup.router.cli(&["fsck", DISK]).context("before the flip")?;
    setup.router.kill9()?;
    let pool = setup.backend.directory()?;
    let scos: Vec<PathBuf> = files(pool)?
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "s"))
        .collect();
    ensure!(!scos.is_empty(), "no SCO below {}", pool.display());
    // By epoch and number: the last ones hold what was overwritten least.
    let mut scos = scos;
    scos.sort();
    // Whatever the workload has overwritten since, some SCO holds a live cluster in its middle.
    let mut seen = false;
    for sco in scos.iter().rev().take(10) {
        let middle = fs::metadata(sco)?.len() / 2;
        flip(sco, middle)?;
        setup.router.start_again()?;
        let name = sco.file_name().context("name")?.to_string_lossy().into_owned();
        let message = setup.router.try_cli(&["fsck", DISK])?.refused(&[&name])?;
        ensure!(!message.is_empty(), "fsck says nothing");
        if let Err(error) = subject.image() {
            ensure!(error.to_string().contains("error 5"), "not an I/O error: {error:#}");
            tests::time::eventually("the log names the object", 5, || {
                ensure!(setup.router.log().contains(&name), "no {name} in the log");
                Ok(())
            })?;
            seen = true;
        }
        setup.router.kill9()?;
        flip(sco, middle)?;
        if seen {
            break;
        }
    }
    ensure!(seen, "no flip in the middle of a SCO was ever noticed by a read");
    setup.router.start_again()?;
    subject.settle(Promise::Everything).context("with the bit back")?;
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let handle = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    handle.read_exact_at(&mut byte, at)?;
    handle.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

/// A missing object is named too, and the rest of the volume serves.
#[test]
fn a_missing_sco_is_named_by_fsck() -> Result<()> {
    let setup = Setup::unscrubbed("missing", Kind::Directory, "32MiB")?;
    let subject = setup.subject(BLOCKS)?;
    subject.run_for(&Plan { longest: 32, hot: 0, ..Plan::default() }, 300)?;
    setup.router.drain(DISK)?;
    let mut scos: Vec<PathBuf> = files(setup.backend.directory()?)?;
    scos.retain(|path| path.components().any(|part| part.as_os_str() == "s"));
    // Not the last one: without that the log ends earlier, and nothing is missing.
    scos.sort();
    let victim = scos.first().context("a SCO")?.clone();
    fs::rename(&victim, setup.path("aside"))?;
    setup
        .router
        .try_cli(&["fsck", DISK])?
        .refused(&[&victim.file_name().context("name")?.to_string_lossy()])?;
    fs::rename(setup.path("aside"), &victim)?;
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}
