//! The command line as a user meets it: exit codes, and messages that name the culprit.

mod support;

use std::os::unix::fs::PermissionsExt;
use support::{Answer, Router, run, scratch};

fn refused(answer: &Answer, code: i32, parts: &[&str]) {
    assert_eq!(answer.code, code, "stdout: {}\nstderr: {}", answer.out, answer.err);
    for part in parts {
        assert!(answer.err.contains(part), "'{part}' is not in: {}", answer.err);
    }
}

#[test]
fn every_command_has_help_with_examples_and_exit_codes_are_told() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("Exit codes:"), "{}", help.out);
    for command in [
        vec!["serve"],
        vec!["config"],
        vec!["doctor"],
        vec!["vpool"],
        vec!["vpool", "create"],
        vec!["vdisk"],
        vec!["vdisk", "create"],
        vec!["vdisk", "qos"],
        vec!["edge"],
        vec!["edge", "info"],
        vec!["edge", "copy"],
        vec!["edge", "bench"],
        vec!["edge", "serve"],
        vec!["log-level"],
        vec!["inspect"],
        vec!["cluster"],
        vec!["cluster", "join"],
        vec!["cluster", "leave"],
        vec!["registry"],
        vec!["fsck"],
    ] {
        let help = run(&[command.as_slice(), &["--help"]].concat());
        assert_eq!(help.code, 0, "{command:?}");
        assert!(help.out.contains("Example"), "{command:?}: {}", help.out);
    }
    refused(&run(&["vdisc"]), 2, &["vdisc"]);
}

#[test]
fn an_unknown_key_is_refused_by_serve_and_by_config_check() {
    let dir = scratch();
    let file = dir.path().join("r.toml");
    std::fs::write(&file, "[api]\nlisten = \"127.0.0.1:0\"\nlissten = \"x\"\n").unwrap();
    let (file, data) = (file.to_str().unwrap(), dir.path().join("data"));
    let parts = ["r.toml", "line 3", "lissten", "did you mean `listen`"];
    refused(&run(&["config", "check", "--config", file]), 2, &parts);
    refused(&run(&["serve", "--config", file, "--data-dir", data.to_str().unwrap()]), 2, &parts);
    assert!(!data.exists(), "nothing is made before the configuration is right");
    refused(&run(&["config", "check", "--set", "nbd.lisen=x"]), 2, &["nbd.lisen=x", "listen"]);
}

#[test]
fn what_config_show_prints_is_a_configuration() {
    let shown = run(&["config", "show", "--set", "volumedriver.journal_mib=1024"]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(shown.out.contains("journal_mib = 1024"), "{}", shown.out);
    let dir = scratch();
    let file = dir.path().join("shown.toml");
    std::fs::write(&file, &shown.out).unwrap();
    let again = run(&["config", "show", "--config", file.to_str().unwrap()]);
    assert_eq!(again.out, shown.out);
}

#[test]
fn a_listener_beyond_loopback_is_refused_unless_insecure_is_said() {
    for key in ["nbd.listen", "edge.listen", "api.listen", "cluster.listen", "dtl.listen"] {
        let set = format!("{key}=0.0.0.0:0");
        refused(&run(&["config", "check", "--set", &set]), 2, &[key, "--insecure"]);
        assert_eq!(run(&["config", "check", "--set", &set, "--insecure"]).code, 0);
    }
}

#[test]
fn a_taken_port_is_told_with_its_key_and_address_before_anything_is_written() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let keys = ["nbd.listen", "edge.listen", "api.listen", "cluster.listen", "dtl.listen"];
    for key in keys {
        let dir = scratch();
        let data = dir.path().join("d");
        let sets = keys.map(|k| format!("--set={k}={}", if k == key { &address } else { "127.0.0.1:0" }));
        let mut words = vec!["serve", "--data-dir", data.to_str().unwrap()];
        words.extend(sets.iter().map(String::as_str));
        let answer = run(&words);
        refused(&answer, 4, &[key, &address, "--set"]);
        assert!(!dir.path().join("d/journal").exists());
    }
}

#[test]
fn a_data_directory_of_a_newer_format_is_refused_and_left_alone() {
    let dir = scratch();
    let format = dir.path().join("format");
    std::fs::write(&format, "{\"format\":7,\"id\":\"x\"}\n").unwrap();
    let answer = run(&["serve", "--data-dir", dir.path().to_str().unwrap()]);
    refused(&answer, 2, &["format 7", "newer", dir.path().to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&format).unwrap(), "{\"format\":7,\"id\":\"x\"}\n");
}

#[test]
fn a_held_data_directory_is_refused_with_the_holder() {
    let dir = scratch();
    std::fs::write(dir.path().join("format"), "{\"format\":1,\"id\":\"x\"}\n").unwrap();
    std::fs::write(dir.path().join("lock"), "4711\n").unwrap();
    let lock = std::fs::File::open(dir.path().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let answer = run(&["serve", "--data-dir", dir.path().to_str().unwrap()]);
    refused(&answer, 4, &["held by process 4711", dir.path().to_str().unwrap()]);
}

#[test]
fn a_directory_that_holds_something_else_is_not_taken() {
    let dir = scratch();
    std::fs::write(dir.path().join("letters.txt"), "").unwrap();
    refused(&run(&["serve", "--data-dir", dir.path().to_str().unwrap()]), 2, &["letters.txt", "--data-dir"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn bad_names_and_sizes_are_refused_before_anything_is_sent() {
    let dead = ["--api", "http://127.0.0.1:1"];
    for words in [
        vec!["vpool", "create", "a/b", "--backend", "directory", "--path", "/x"],
        vec!["vpool", "show", "a/b"],
        vec!["vdisk", "create", "a/b", "--vpool", "p", "--size", "1GiB"],
        vec!["vdisk", "show", "p/a/b"],
        vec!["vdisk", "show", "../x"],
    ] {
        refused(&run(&[words.as_slice(), &dead].concat()), 2, &["bad name"]);
    }
    for (flag, value) in
        [("--read-iops", "0"), ("--write-iops", "many"), ("--read-bandwidth", "10MB"), ("--burst", "61")]
    {
        let words = ["vdisk", "qos", "d", &format!("{flag}={value}")];
        refused(&run(&[&words, dead.as_slice()].concat()), 2, &[flag, value]);
    }
    for size in ["10GB", "ten", "-1", "99999999999T"] {
        let words = ["vdisk", "create", "d", "--vpool", "p", &format!("--size={size}")];
        refused(&run(&[&words, dead.as_slice()].concat()), 2, &[size]);
    }
}

#[test]
fn no_router_is_told_as_such_with_its_own_exit_code() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let api = format!("http://{free}");
    for words in [vec!["vpool", "list"], vec!["vdisk", "show", "p/d"], vec!["health"], vec!["log-level"]] {
        refused(
            &run(&[words.as_slice(), &["--api", &api]].concat()),
            5,
            &["no storage router is running", &api, "storagerouter serve"],
        );
    }
    let version = run(&["version", "--api", &api]);
    assert_eq!(version.code, 0, "{}", version.err);
    assert!(version.out.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn doctor_fails_where_serve_would() {
    let dir = scratch();
    std::fs::write(dir.path().join("format"), "{\"format\":7,\"id\":\"x\"}\n").unwrap();
    let answer = run(&["doctor", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(answer.code, 1, "{}{}", answer.out, answer.err);
    assert!(answer.out.lines().any(|l| l.starts_with("FAIL") && l.contains("format 7")), "{}", answer.out);
}

#[test]
fn a_router_serves_the_whole_life_of_a_vdisk_and_stops_with_code_0() {
    let dir = scratch();
    let mut router = Router::start(dir.path());
    let mode = std::fs::metadata(router.data()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);

    let store = dir.path().join("store");
    let store = store.to_str().unwrap();
    let made = router.run(&["vpool", "create", "p", "--backend", "directory", "--path", store, "-o", "json"]);
    assert_eq!(made.json()["name"], "p");
    refused(&router.run(&["vpool", "create", "p2", "--backend", "directory", "--path", store]), 4, &["p"]);

    let disk = router.run(&["vdisk", "create", "d", "--vpool", "p", "--size", "10G", "-o", "json"]).json();
    assert_eq!(disk["size_bytes"], 10u64 << 30);
    refused(&router.run(&["vdisk", "create", "d", "--vpool", "p", "--size", "1G"]), 4, &["d"]);
    refused(&router.run(&["vdisk", "create", "zero", "--vpool", "p", "--size", "0"]), 2, &["size"]);
    refused(&router.run(&["vdisk", "create", "huge", "--vpool", "p", "--size", "65TiB"]), 2, &["64 TiB"]);
    refused(&router.run(&["vdisk", "show", "p/none"]), 3, &["none"]);
    refused(&router.run(&["vdisk", "show", "none"]), 3, &["none"]);

    let shown = router.run(&["vdisk", "show", "d", "-o", "json"]).json();
    for key in ["size_bytes", "stored_bytes", "epoch", "frontiers", "nbd_uri", "edge"] {
        assert!(!shown[key].is_null(), "{key} is not in {shown}");
    }
    let grown = router.run(&["vdisk", "resize", "p/d", "--size", "20GiB", "-o", "json"]).json();
    assert_eq!(grown["size_bytes"], 20u64 << 30);
    let list = router.run(&["vdisk", "list", "--vpool", "p"]);
    assert!(list.out.contains("p/d") && list.out.contains("20 GiB"), "{}", list.out);
    assert_eq!(router.run(&["vdisk", "drain", "d"]).code, 0);

    let words = [
        "vdisk",
        "qos",
        "d",
        "--read-iops",
        "200",
        "--write-bandwidth",
        "10M",
        "--burst",
        "2.5",
        "-o",
        "json",
    ];
    let limits = serde_json::json!({"read_iops": 200, "write_bytes_per_second": 10 << 20, "burst_ms": 2500});
    assert_eq!(router.run(&words).json(), limits);
    assert!(router.run(&["vdisk", "qos", "p/d"]).out.contains("200 IOPS"));
    assert!(router.run(&["vdisk", "show", "d"]).out.contains("10 MiB/s"));
    let slow = router.run(&["vdisk", "qos", "d", "--read-bandwidth", "100"]);
    refused(&slow, 2, &["read_bytes_per_second = 100", "4096"]);
    refused(&router.run(&["vdisk", "qos", "p/none", "--clear"]), 3, &["none"]);

    assert_eq!(router.run(&["log-level", "info,volumedriver=debug"]).code, 0);
    assert!(router.run(&["log-level"]).out.contains("volumedriver=debug"));
    refused(&router.run(&["log-level", "inof"]), 2, &["inof"]);
    let mut words = vec!["serve", "--data-dir", router.data().to_str().unwrap()];
    words.extend(support::ANY_PORT.iter().flat_map(|setting| ["--set", setting]));
    let held = run(&words);
    refused(&held, 4, &[&format!("process {}", router.pid())]);

    assert_eq!(router.terminate(), 0);
    let router = Router::start(dir.path());
    let again = router.run(&["vdisk", "show", "d", "-o", "json"]).json();
    assert_eq!(again["size_bytes"], 20u64 << 30);
    assert!(again["epoch"].as_u64() > shown["epoch"].as_u64(), "every open takes a new epoch");
    assert_eq!(again["qos"], limits);
    assert_eq!(router.run(&["vdisk", "qos", "d", "--clear", "-o", "json"]).json(), serde_json::json!({}));
    let checked = router.run(&["fsck", "p/d"]);
    assert_eq!(checked.code, 0, "{}{}", checked.out, checked.err);
    assert_eq!(router.run(&["inspect", "--vpool", "p", "vpool"]).code, 0);

    refused(&router.run(&["vpool", "delete", "p"]), 4, &["d"]);
    assert_eq!(router.run(&["vdisk", "delete", "d"]).code, 0);
    assert_eq!(router.run(&["vpool", "delete", "p"]).code, 0);
    assert!(router.run(&["vpool", "list", "-o", "json"]).json()["items"].as_array().unwrap().is_empty());
}

#[test]
fn a_corrupt_index_is_made_again_with_a_warning() {
    let dir = scratch();
    let mut router = Router::start(dir.path());
    let index = router.data().join("index");
    assert_eq!(router.terminate(), 0);
    std::fs::write(index.join("CURRENT"), "garbage").unwrap();
    let mut router = Router::start(dir.path());
    assert!(router.log().contains("made again"), "{}", router.log());
    assert_eq!(router.terminate(), 0);
}

#[test]
fn sigterm_ends_it_with_code_0_while_a_client_is_connected() {
    let dir = scratch();
    let mut router = Router::start(dir.path());
    let socket = router.data().join("nbd.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o077, 0, "others can't connect");
    let idle = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    assert_eq!(router.terminate(), 0);
    drop(idle);
    assert!(!socket.exists(), "the socket goes with the router");
    assert!(router.log().contains("stopped"), "{}", router.log());
}

#[test]
fn sighup_reads_the_log_filter_again_and_a_bad_one_changes_nothing() {
    let dir = scratch();
    let file = dir.path().join("r.toml");
    std::fs::write(&file, "[log]\nfilter = \"info\"\n").unwrap();
    let mut router = Router::start_with(dir.path(), &["--config", file.to_str().unwrap()]);
    std::fs::write(&file, "[log]\nfilter = \"info,edge=trace\"\n").unwrap();
    router.signal(rustix::process::Signal::HUP);
    router.wait_for_log("edge=trace");
    std::fs::write(&file, "[log]\nfilter = \"inof\"\n").unwrap();
    router.signal(rustix::process::Signal::HUP);
    router.wait_for_log("inof");
    assert!(router.run(&["log-level"]).out.contains("edge=trace"));
    assert_eq!(router.terminate(), 0);
}

#[test]
fn the_service_manager_is_told_ready_and_stopping() {
    let dir = scratch();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut router = Router::start_under(dir.path(), &path);
    router.run(&["health"]);
    assert_eq!(router.terminate(), 0);
    let told = told(&socket);
    let (ready, stopping) = (told.find("READY=1"), told.find("STOPPING=1"));
    assert!(ready.is_some() && stopping > ready, "{told}");
    assert!(told.contains("WATCHDOG=1"), "{told}");
}

/// Everything that the service manager was told so far.
fn told(socket: &std::os::unix::net::UnixDatagram) -> String {
    socket.set_nonblocking(true).unwrap();
    let (mut told, mut buffer) = (String::new(), [0; 4096]);
    while let Ok(n) = socket.recv(&mut buffer) {
        told.push_str(&String::from_utf8_lossy(&buffer[..n]));
        told.push('\n');
    }
    told
}

#[test]
fn edge_serve_says_where_it_is_and_when_it_is_ready_before_any_router_is() {
    let dir = scratch();
    let (notify, nbd) = (dir.path().join("notify"), dir.path().join("a b.sock"));
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    let words = ["edge", "serve", "--listen", "127.0.0.1:0", "--router", "127.0.0.1:1", "p/v", "--unix"];
    let serve = support::command()
        .args(words)
        .arg(&nbd)
        .env("NOTIFY_SOCKET", &notify)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The first thing that it says there.
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).unwrap();
    let ready = String::from_utf8_lossy(&buffer[..n]).contains("READY=1");
    let pid = rustix::process::Pid::from_raw(serve.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = serve.wait_with_output().unwrap();
    assert!(ready && told(&socket).contains("STOPPING=1"));
    assert_eq!(ended.status.code(), Some(0));
    let uris = String::from_utf8(ended.stdout).unwrap();
    let unix = format!("nbd+unix:///p/v?socket={}\n", nbd.display().to_string().replace(' ', "%20"));
    assert!(uris.contains(&unix) && uris.contains("nbd://127.0.0.1:") && !uris.contains(":0/"), "{uris}");
    assert!(!nbd.exists(), "its socket stayed");
}
