//! The NBD project's own tester. No package holds it, so it is built from Debian's source package.

use crate::packages;
use crate::place;
use crate::steps::Program;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// What the tests find in the tools folder afterwards.
const FILES: [&str; 3] = ["nbd-tester-client", "integrity-test.tr", "integrityhuge-test.tr"];

/// Builds the tester unless it is there.
pub fn build() -> Result<()> {
    let bin = place::tools().join("bin");
    if FILES.iter().all(|file| bin.join(file).is_file()) {
        return Ok(());
    }
    println!("Building nbd-tester-client from Debian's nbd source package (about a minute)");
    let needed = [
        "gcc",
        "make",
        "pkg-config",
        "libglib2.0-dev",
        "libgnutls28-dev",
        "libnl-genl-3-dev",
        "autoconf",
        "automake",
        "libtool",
        "bison",
        "flex",
        "autoconf-archive",
        "dpkg-dev",
    ];
    packages::install(needed.iter().filter(|package| !installed(package)).map(|p| p.to_string()).collect())?;
    let (work, log) = (place::tools().join("nbd-source"), place::target().join("xtask/nbd-tester.log"));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let source = fetch(&work, &log)?;
    let run = |program: &str, arguments: &[&str]| {
        let mut build = Program::new(program, arguments);
        build.command.current_dir(&source);
        build.run_quietly(&log)
    };
    run("./configure", &["--enable-syslog=no", "--disable-manpages"])?;
    run("make", &["-j2"])?;
    run("make", &["-C", "tests/run", "nbd-tester-client"])?;
    fs::create_dir_all(&bin)?;
    for file in FILES {
        fs::copy(source.join("tests/run").join(file), bin.join(file)).with_context(|| file.to_string())?;
    }
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn installed(package: &str) -> bool {
    let asked = Program::new("dpkg-query", &["-W", "-f", "${Status}", package]).text();
    asked.is_some_and(|status| status.ends_with("ok installed"))
}

/// Unpacks the source, from a sources list of our own so that the system's stays as it is.
fn fetch(work: &Path, log: &Path) -> Result<std::path::PathBuf> {
    let apt = work.join("apt");
    fs::create_dir_all(apt.join("lists/partial"))?;
    let mirrors =
        Program::new("apt-get", &["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let mirrors = mirrors.text().context("apt-get indextargets")?;
    let mirror = mirrors.lines().find(|line| line.trim_end_matches('/').ends_with("/debian"));
    let mirror = mirror.or(mirrors.lines().next()).context("apt knows no mirror")?;
    // The newest stable source: it has the most tests, and its archive file is on every mirror.
    let entry = format!(
        "Types: deb-src\nURIs: {mirror}\nSuites: trixie\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write(apt.join("source.sources"), entry)?;
    let options = [
        "-o".to_string(),
        "Dir::Etc::sourcelist=/dev/null".into(),
        "-o".into(),
        format!("Dir::Etc::sourceparts={}", apt.display()),
        "-o".into(),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        // The unprivileged download user need not be able to enter this folder.
        "-o".into(),
        "APT::Sandbox::User=root".into(),
    ];
    for action in [&["update", "-q"][..], &["source", "-q", "nbd"]] {
        let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
        all.extend(action);
        let mut get = Program::new("apt-get", &all);
        get.command.current_dir(work);
        get.run_quietly(log)?;
    }
    let entries = fs::read_dir(work)?.flatten().map(|entry| entry.path());
    let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nbd-"));
    entries.into_iter().find(|path| path.is_dir() && named(path)).context("no unpacked nbd source")
}
