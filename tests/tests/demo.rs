//! `cargo xtask demo`, as a newcomer runs it: it takes a free port, serves, its printed commands
//! work as they are, Ctrl-C stops it, and a second run finds its data.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use tests::process::Process;
use tests::time::eventually;
use tests::tools::{command, free_port, need_mounts, own_program, run_within, scratch, source};

struct Demo {
    process: Process,
    log: std::path::PathBuf,
}

fn xtask() -> Result<std::process::Command> {
    let mut xtask = command(own_program("xtask")?);
    xtask.current_dir(source(".."));
    Ok(xtask)
}

impl Demo {
    fn start(data: &Path, port: u16, api_port: u16) -> Result<Self> {
        let log = data.with_extension(format!("{port}.out"));
        let mut demo = xtask()?;
        demo.args(["demo", "--port", &port.to_string(), "--api-port", &api_port.to_string(), "--data-dir"])
            .arg(data);
        let mut process = Process::spawn("xtask demo", demo, &log)?;
        eventually("the demo", 300, || {
            process.must_run()?;
            ensure!(fs::read_to_string(&log)?.contains("Ctrl-C stops it."), "still starting");
            Ok(())
        })?;
        Ok(Self { process, log })
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    fn stop(mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let status = self.process.wait(60)?;
        ensure!(status.success(), "the demo ended with {status}: {}", self.said()?);
        Ok(())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It takes its router along, which a kill -9 would not.
        let _ = self.process.signal(Signal::TERM);
        let _ = self.process.wait(30);
    }
}

/// Runs what is printed between the markers, word for word.
fn try_block(said: &str, data: &Path, block: &str) -> Result<String> {
    let start = format!("----- {block}\n");
    let text = said.split_once(&start).and_then(|(_, rest)| rest.split_once("-----")).map(|(text, _)| text);
    let text = text.with_context(|| format!("no block {block} in: {said}"))?;
    let mut print = xtask()?;
    print.args(["demo", "--print-commands", block, "--data-dir"]).arg(data);
    ensure!(run_within(30, print)?.ok()?.stdout == text, "--print-commands {block} prints something else");
    let script = data.join(format!("{block}.sh"));
    fs::write(&script, text)?;
    let mut shell = command("sh");
    shell.arg("-e").arg(&script);
    Ok(run_within(180, shell)?.ok().with_context(|| format!("block {block}:\n{text}"))?.stdout)
}

#[test]
fn the_demo_serves_and_its_commands_work_word_for_word() -> Result<()> {
    need_mounts()?;
    let folder = scratch("demo")?;
    let data = folder.path().join("data");
    let busy = TcpListener::bind("127.0.0.1:0")?;
    let (port, api_port) = (busy.local_addr()?.port(), free_port()?);
    let demo = Demo::start(&data, port, api_port)?;
    let said = demo.said()?;
    ensure!(said.contains(&format!("port {port} is busy")), "it says which port it did not get: {said}");
    ensure!(said.contains("nbd://127.0.0.1:") && said.contains("/demo/disk1"), "the NBD URI: {said}");
    let mounted = try_block(&said, &data, "mount")?;
    ensure!(mounted.contains("clean") || mounted.contains("blocks"), "e2fsck: {mounted}");
    let killed = try_block(&said, &data, "kill")?;
    ensure!(killed.contains("nothing was lost"), "{killed}");
    ensure!(
        demo.said()?.contains("starting it again"),
        "the demo restarts a killed router: {}",
        demo.said()?
    );
    demo.stop(Signal::INT)?;

    // A second run, on other ports: the vDisk has its file system, the proof its bytes.
    drop(busy);
    let demo = Demo::start(&data, free_port()?, free_port()?)?;
    let said = demo.said()?;
    let mounted = try_block(&said, &data, "mount")?;
    ensure!(mounted.contains("TYPE=\"ext4\""), "the second run formatted again: {mounted}");
    let uri = said
        .split_whitespace()
        .find(|word| word.starts_with("nbd://"))
        .context("URI")?
        .replace("disk1", "proof");
    let mut compare = command("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(data.join("written")).arg(uri);
    run_within(120, compare)?.ok().context("the data of the first run")?;
    demo.stop(Signal::TERM)?;
    match fs::read_to_string(data.join("router.pid")) {
        Err(_) => Ok(()),
        Ok(pid) => bail!("a router may still run: {pid}"),
    }
}
