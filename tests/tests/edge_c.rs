//! A program in C that is linked against the installed library does I/O across a failover of real routers.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::path::Path;
use tests::cluster::{Cluster, DISK};
use tests::process::Process;
use tests::time::eventually;
use tests::tools::{command, need, own_program, run, run_within, source};

/// Builds the example as its head says, with what was installed in `prefix` and nothing else of ours.
fn build(prefix: &Path, fixed: bool) -> Result<std::path::PathBuf> {
    let program = prefix.join(if fixed { "endure-static" } else { "endure" });
    let mut config = command("pkg-config");
    config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).args(["--cflags", "--libs"]);
    if fixed {
        config.arg("--static");
    }
    config.arg("storagerouter-edge");
    let words = run_within(10, config)?.ok()?.stdout;
    let library = prefix.join("lib/libstoragerouter_edge.a").display().to_string();
    let link = words.split_whitespace().map(|word| match word {
        "-lstoragerouter_edge" if fixed => library.as_str(),
        word => word,
    });
    let example = source("../edge/c/examples/endure.c").display().to_string();
    let mut cc = command("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-D_GNU_SOURCE", &example]);
    cc.args(link).args(["-lpthread", "-o"]).arg(&program);
    run_within(60, cc)?.ok()?;
    Ok(program)
}

/// How many writes it has told of.
fn writes(process: &Process) -> u64 {
    let told = process.output();
    told.lines().rev().find_map(|line| line.strip_suffix(" writes")?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_c_program_goes_on_while_the_owner_is_killed() -> Result<()> {
    need(&["cc", "pkg-config"])?;
    let mut cluster = Cluster::start("edge-c", "64MiB", &[])?;
    let prefix = cluster.folder.path().join("prefix");
    let place = prefix.display().to_string();
    run(&own_program("xtask")?.display().to_string(), ["edge-c", "--built", "--prefix", &place])?;
    let addresses: Vec<_> = cluster.routers.iter().map(tests::edge::address).collect();
    for fixed in [false, true] {
        let mut program = command(build(&prefix, fixed)?);
        program.env("LD_LIBRARY_PATH", prefix.join("lib")).args([&addresses.join(","), DISK]);
        let log = cluster.folder.path().join(format!("endure-{fixed}.log"));
        let (owner, peer) = cluster.in_sync()?;
        let mut process = Process::spawn("endure", program, &log)?;
        let mut past = |many: u64| {
            eventually("it writes", 60, || {
                process.must_run()?;
                let told = writes(&process);
                ensure!(told > many, "{told} writes, not more than {many}");
                Ok(told)
            })
        };
        past(1000)?;
        cluster.routers[owner].kill9()?;
        // What was under way, and what it had told before, end before the others.
        let told = past(0)?;
        past(told + 4096)?;
        ensure!(cluster.owner()? == peer, "somebody else than the peer took over");
        process.signal(Signal::TERM)?;
        let status = process.wait(60)?;
        let said = process.output();
        let last = said.lines().last().context("it said nothing")?;
        ensure!(
            status.success() && last.starts_with("fine") && !last.contains(" 0 reconnects"),
            "{status}: {said}"
        );
        println!("{last}");
        cluster.routers[owner].start_again()?;
    }
    Ok(())
}
