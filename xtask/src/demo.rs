//! A storage router to play with: built, started, supervised, with commands to try.

use crate::place;
use crate::router::{Router, free, stop, terminate};
use crate::{check, packages};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// `cargo xtask demo`.
#[derive(Args)]
pub struct Demo {
    /// Where the data lies [default: ~/.local/share/storagerouter-demo]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// NBD port; the next free one is taken when it is busy
    #[arg(long, default_value_t = 10809)]
    port: u16,
    /// API port; the next free one is taken when it is busy
    #[arg(long, default_value_t = 8080)]
    api_port: u16,
    /// Print one block of commands to try with the demo that runs on this data directory, and end
    #[arg(long, value_name = "BLOCK")]
    print_commands: Option<Block>,
}

/// A block of commands to try.
#[derive(Clone, Copy, ValueEnum)]
enum Block {
    /// An ext4 file system on the vDisk
    Mount,
    /// kill -9 loses nothing
    Kill,
}

/// A running demo: what the commands need to know.
struct Place {
    router: Router,
}

/// `cargo xtask demo`.
pub fn run(demo: &Demo) -> Result<ExitCode> {
    let data = match &demo.data_dir {
        Some(folder) => std::path::absolute(folder)?,
        None => place::data("storagerouter-demo")?,
    };
    if let Some(block) = demo.print_commands {
        print!("{}", Place::of_running(data)?.commands(block));
        return Ok(ExitCode::SUCCESS);
    }
    let signals = Arc::new(AtomicUsize::new(0));
    println!("1/3  Install what is missing: a compiler for RocksDB's bindings, NBD clients (under a minute)");
    packages::for_demo()?;
    println!(
        "2/3  Build in release mode (10 to 25 minutes the first time, most of it RocksDB; seconds later)"
    );
    check::build().run()?;
    println!("3/3  Start one storage router on {}", data.display());
    for signal in [SIGINT, SIGTERM] {
        let seen = signals.clone();
        signal_hook::flag::register_usize(signal, seen, 1)?;
    }
    fs::create_dir_all(&data)?;
    let place = Place::new(data, free(demo.port)?, free(demo.api_port)?);
    let served = &place.router;
    fs::write(served.file("ports"), format!("{} {}\n", served.nbd_port, served.api_port))?;
    let mut router = served.start()?;
    let stopped = |status: ExitStatus| ExitCode::from(status.code().map_or(1, |code| code as u8));
    if let Some(status) = served.wait_ready(&mut router, &signals)? {
        eprintln!("storagerouter did not start ({status}):\n{}", served.log_end());
        return Ok(if signals.load(Ordering::SeqCst) > 0 { ExitCode::SUCCESS } else { stopped(status) });
    }
    if signals.load(Ordering::SeqCst) == 0 {
        if let Err(error) = place.provision() {
            stop(&mut router)?;
            return Err(error);
        }
        place.explain();
    }
    loop {
        if signals.load(Ordering::SeqCst) > 0 {
            return stopping(&place, &mut router, &signals);
        }
        if let Some(status) = router.try_wait()? {
            if status.signal().is_none() {
                eprintln!("storagerouter ended by itself ({status}):\n{}", served.log_end());
                return Ok(stopped(status));
            }
            println!("storagerouter was killed ({status}): starting it again on the same data");
            let began = Instant::now();
            router = served.start()?;
            if let Some(status) = served.wait_ready(&mut router, &signals)? {
                eprintln!("it did not come back ({status}):\n{}", served.log_end());
                return Ok(stopped(status));
            }
            println!("it serves again after {:.1} s", began.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn stopping(place: &Place, router: &mut Child, signals: &AtomicUsize) -> Result<ExitCode> {
    println!("\nStopping: what was acknowledged is flushed, what is cheap is uploaded");
    signals.store(0, Ordering::SeqCst);
    let mut status = stop(router)?;
    while status.is_none() {
        if signals.swap(0, Ordering::SeqCst) > 0 {
            println!("Stopping at once");
            terminate(router)?;
        }
        std::thread::sleep(Duration::from_millis(50));
        status = router.try_wait()?;
    }
    let _ = fs::remove_file(place.router.file("router.pid"));
    println!(
        "Stopped. The data stays in {}; the next `cargo xtask demo` finds it again.",
        place.router.folder.display()
    );
    let clean = status.is_some_and(|status| status.success());
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Place {
    fn new(data: PathBuf, nbd_port: u16, api_port: u16) -> Self {
        // Nobody joins it.
        let settings = ["cluster.listen=127.0.0.1:0", "dtl.listen=127.0.0.1:0"].map(String::from).to_vec();
        Self { router: Router { folder: data, nbd_port, api_port, settings } }
    }

    fn of_running(data: PathBuf) -> Result<Self> {
        let ports = fs::read_to_string(data.join("ports")).with_context(|| {
            format!("no demo has run on {}; start it with `cargo xtask demo`", data.display())
        })?;
        let mut numbers = ports.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(nbd_port)), Some(Ok(api_port))) => Ok(Self::new(data, nbd_port, api_port)),
            _ => bail!("{} holds no ports", data.join("ports").display()),
        }
    }

    fn uri(&self, vdisk: &str) -> String {
        format!("nbd://127.0.0.1:{}/demo/{vdisk}", self.router.nbd_port)
    }

    /// Makes the vPool and the vDisk unless an earlier run did.
    fn provision(&self) -> Result<()> {
        let must = |arguments: &[&str]| {
            let output = self.router.cli(arguments)?;
            if !output.status.success() {
                bail!(
                    "storagerouter {}: {}",
                    arguments.join(" "),
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(())
        };
        if !self.router.cli(&["vpool", "show", "demo"])?.status.success() {
            let pool = self.router.file("pool").display().to_string();
            let create = ["vpool", "create", "demo", "--backend", "directory", "--path", &pool];
            if Path::new(&pool).join("vpool").exists() {
                must(&[&create[..], &["--adopt"]].concat())?;
            } else {
                must(&create)?;
            }
        }
        if !self.router.cli(&["vdisk", "show", "demo/disk1"])?.status.success() {
            must(&["vdisk", "create", "disk1", "--vpool", "demo", "--size", "10GiB"])?;
        }
        Ok(())
    }

    fn explain(&self) {
        println!();
        println!("A 10 GiB vDisk, thin, in the vPool 'demo':");
        println!("  NBD   {}", self.uri("disk1"));
        println!("  API   {}/api/v1", self.router.api());
        println!(
            "  data  {}   log  {}",
            self.router.folder.display(),
            self.router.file("router.log").display()
        );
        println!();
        println!("To try in another shell, as root: a file system on it");
        println!("----- mount\n{}-----", self.commands(Block::Mount));
        println!();
        println!("kill -9 in the middle of things loses nothing that was acknowledged, flushed or not:");
        println!("----- kill\n{}-----", self.commands(Block::Kill));
        println!();
        println!(
            "More: {} vdisk list --api {}",
            place::program("storagerouter").display(),
            self.router.api()
        );
        println!("Ctrl-C stops it.");
        // The test that drives this through a pipe waits for the last line.
        let _ = std::io::stdout().flush();
    }

    fn commands(&self, block: Block) -> String {
        let (data, api) = (self.router.folder.display(), self.router.api());
        match block {
            Block::Mount => format!(
                "cd '{data}' && mkdir -p mnt && touch disk1 && rm -f nbdfuse.pid
nbdfuse -P nbdfuse.pid disk1 {uri} &
timeout 20 sh -c 'until [ -s nbdfuse.pid ]; do sleep 0.1; done'
blkid disk1 || mkfs.ext4 -q -E nodiscard disk1
mount -o loop disk1 mnt
cp -r /usr/share/doc/. mnt/ && df -h mnt
umount mnt
e2fsck -fn disk1
fusermount3 -u disk1
",
                uri = self.uri("disk1"),
            ),
            Block::Kill => format!(
                "cd '{data}'
sr='{program}'
\"$sr\" vdisk show demo/proof --api {api} >proof.txt 2>&1 || \"$sr\" vdisk create proof --vpool demo --size 256MiB --api {api}
head -c 256M /dev/urandom >written
nbdcopy written {uri}
kill -9 \"$(cat router.pid)\"
sleep 1
timeout 60 sh -c 'until nbdinfo --size {uri} 2>proof.txt; do sleep 0.2; done'
nbdcopy {uri} read
cmp written read && echo nothing was lost
",
                program = place::program("storagerouter").display(),
                uri = self.uri("proof"),
            ),
        }
    }
}
