//! A program in C, built with the C compiler, at a server in this process.

use common::clock::SystemClock;
use common::sim::{SimDevice, SimExports};
use common::{Clock, Geometry};
use edge::protocol::server::Metrics;
use edge::protocol::{PlainExports, Server, Settings};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Where cargo put the library that is tested.
fn libraries() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().to_owned()
}

fn build(into: &Path, link: &[&str]) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = into.join("roundtrip");
    let libraries = libraries();
    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-D_GNU_SOURCE"])
        .arg(here.join("examples/roundtrip.c"))
        .arg("-I")
        .arg(here.join("include"))
        .arg("-L")
        .arg(&libraries)
        .args(link)
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .args(["-lpthread", "-ldl", "-lm", "-o"])
        .arg(&program)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn a_c_program_reads_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let socket = folder.path().join("edge.sock");
    let (running, stop) = watch::channel(false);
    let served = runtime.block_on(async {
        let geometry = Geometry {
            size: 1 << 20,
            min_block: 512,
            preferred_block: 4096,
            max_payload: 16 << 10,
            read_only: false,
        };
        let mut exports = SimExports::default();
        exports.devices.insert("p/a".into(), Arc::new(SimDevice::new(geometry)));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let attachments =
            Arc::new(PlainExports::new(Arc::new(exports), Duration::from_secs(5), clock.clone()));
        let settings =
            Settings { listen: "127.0.0.1:0".into(), unix: Some(socket.clone()), ..Settings::default() };
        let server = Server::new("r".into(), settings, attachments, clock, Metrics::default());
        let listeners = server.bind().await.unwrap();
        let tcp = listeners.local_addr().unwrap();
        (tcp, tokio::spawn(server.serve(listeners, stop)))
    });
    let (tcp, serving) = served;
    // The library in both of its forms, and both kinds of address.
    let dynamic = build(folder.path(), &["-lstoragerouter_edge"]);
    let unix = format!("unix:{}", socket.display());
    for addresses in [unix.clone(), format!("127.0.0.1:1, {tcp}")] {
        let run = Command::new(&dynamic).args([addresses.as_str(), "p/a"]).output().unwrap();
        let told = [run.stdout, run.stderr].concat();
        assert!(run.status.success(), "{addresses}: {}", String::from_utf8_lossy(&told));
    }
    let run = Command::new(&dynamic).args([unix.as_str(), "p/none"]).output().unwrap();
    assert!(String::from_utf8_lossy(&run.stderr).contains("there is no vDisk"), "{run:?}");
    let archive = libraries().join("libstoragerouter_edge.a").display().to_string();
    let fixed = build(folder.path(), &[&archive]);
    let run = Command::new(&fixed).args([unix.as_str(), "p/a"]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    running.send(true).unwrap();
    runtime.block_on(serving).unwrap();
}
