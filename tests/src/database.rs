//! Databases as clients: they write on a mount, and what they were told was committed is noted
//! outside of it. After a crash each noted commit must be there.

use crate::mount::Mount;
use crate::process::Process;
use crate::setup::Served;
use crate::time::pause;
use crate::tools::{command, find, need, run_within, source};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// SQLite with a rollback journal in odd rounds, a write-ahead log in even ones.
    Sqlite,
    /// PostgreSQL with its defaults: fsync on.
    Postgres,
}

/// Runs a database through kill -9 of the server: write, kill, unmount, start again, mount (which
/// replays the file system's journal), unmount, check the file system, mount, check the database,
/// and look for every commit that returned.
pub fn through_kills(database: Database, server: &mut dyn Served, folder: &Path, rounds: u64) -> Result<()> {
    // The database's user must be able to pass through.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let noted = folder.join("committed");
    std::fs::write(&noted, "")?;
    let mount = Mount::new(folder, &server.uri(), true)?;
    database.prepare(folder, mount.point())?;
    let mut mount = Some(mount);
    for round in 1..=rounds {
        let here = mount.take().context("mounted")?;
        let before = ids(&noted)?.len();
        let mut running = database.start(folder, here.point(), round)?;
        // The kill comes at a random moment, but not before something was committed.
        crate::time::eventually("the first commits", 60, || {
            running.must_run()?;
            ensure!(ids(&noted)?.len() > before + 5, "none yet");
            Ok(())
        })?;
        // Short in most rounds: each check reads the whole of a database that only grows.
        pause(fastrand::u64(50..if round % 4 == 0 { 2000 } else { 400 }));
        server.kill()?;
        running.end()?;
        here.abandon();
        server.revive()?;
        Mount::new(folder, &server.uri(), false)?
            .close()
            .with_context(|| format!("round {round}: file system"))?;
        let again = Mount::new(folder, &server.uri(), false)?;
        let committed = ids(&noted)?;
        database
            .check(folder, again.point(), &committed)
            .with_context(|| format!("round {round} of {database:?} with {} commits", committed.len()))?;
        println!("{database:?} round {round}: {} commits, all there", committed.len());
        mount = Some(again);
    }
    mount.context("mounted")?.close()
}

/// The numbers noted as committed; an unfinished last line does not count.
fn ids(file: &Path) -> Result<BTreeSet<u64>> {
    let text = std::fs::read_to_string(file)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

struct Running {
    client: Process,
    server: Option<Process>,
}

impl Running {
    fn must_run(&mut self) -> Result<()> {
        if let Some(server) = &mut self.server {
            server.must_run()?;
        }
        self.client.must_run()
    }

    /// Below them the disk is gone: whatever they do now, they end.
    fn end(&mut self) -> Result<()> {
        self.client.kill9()?;
        if let Some(server) = &mut self.server {
            // The fast way to take its own children along.
            server.signal(rustix::process::Signal::QUIT)?;
            if server.wait(10).is_err() {
                server.kill9()?;
            }
        }
        Ok(())
    }
}

impl Database {
    fn prepare(self, folder: &Path, mount: &Path) -> Result<()> {
        if self == Database::Sqlite {
            return Ok(());
        }
        let data = mount.join("pg");
        std::fs::create_dir(&data)?;
        for place in [data.clone(), sockets(folder)] {
            std::fs::create_dir_all(&place)?;
            run_within(10, with("chown", &[user()?, &place.display().to_string()]))?.ok()?;
        }
        let mut init = as_user("initdb")?;
        init.arg("-D").arg(&data).args(["-A", "trust", "-U", "harness", "-E", "UTF8", "--locale=C"]);
        run_within(120, init)?.ok()?;
        let mut server = start_postgres(folder, mount)?;
        psql(folder, "CREATE TABLE t (id bigint PRIMARY KEY, filler text NOT NULL)")?;
        stop_postgres(&mut server)
    }

    fn start(self, folder: &Path, mount: &Path, round: u64) -> Result<Running> {
        let noted = folder.join("committed");
        let (mut client, server) = match self {
            Database::Sqlite => {
                let mut client = command("/usr/bin/python3");
                let mode = if round % 2 == 1 { "DELETE" } else { "WAL" };
                client
                    .arg(source("scripts").join("sqlite_client.py"))
                    .arg(mount.join("db"))
                    .arg(&noted)
                    .arg(mode);
                (client, None)
            }
            Database::Postgres => {
                let server = start_postgres(folder, mount)?;
                let mut client = command("/usr/bin/python3");
                client.arg(source("scripts").join("postgres_client.py")).arg(find("psql").context("psql")?);
                client.arg(sockets(folder)).arg(&noted);
                (client, Some(server))
            }
        };
        client.env("PYTHONUNBUFFERED", "1");
        let client = Process::spawn(&format!("client of {self:?}"), client, &folder.join("client.log"))?;
        Ok(Running { client, server })
    }

    fn check(self, folder: &Path, mount: &Path, committed: &BTreeSet<u64>) -> Result<()> {
        let rows = match self {
            Database::Sqlite => {
                let database = mount.join("db").display().to_string();
                let verdict =
                    run_within(300, with("sqlite3", &[&database, "PRAGMA integrity_check"]))?.ok()?;
                ensure!(verdict.stdout.trim() == "ok", "integrity_check: {}", verdict.stdout);
                run_within(300, with("sqlite3", &[&database, "SELECT id FROM t"]))?.ok()?.stdout
            }
            Database::Postgres => {
                let mut server = start_postgres(folder, mount)?;
                let host = sockets(folder).display().to_string();
                let amcheck = find("pg_amcheck").context("pg_amcheck")?;
                let arguments =
                    ["-h", &host, "-U", "harness", "--install-missing", "--heapallindexed", "-d", "postgres"];
                run_within(300, with(amcheck, &arguments))?.ok()?;
                let rows = psql(folder, "SELECT id FROM t")?;
                stop_postgres(&mut server)?;
                rows
            }
        };
        let rows: BTreeSet<u64> = rows.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let lost: Vec<_> = committed.difference(&rows).collect();
        ensure!(
            lost.is_empty(),
            "{} commits returned and are gone, such as {:?}",
            lost.len(),
            &lost[..lost.len().min(5)]
        );
        Ok(())
    }
}

fn with(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> std::process::Command {
    let mut command = command(program);
    command.args(arguments);
    command
}

fn sockets(folder: &Path) -> PathBuf {
    folder.join("sockets")
}

/// PostgreSQL refuses to run as root.
fn user() -> Result<&'static str> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let has = |name: &str| users.lines().any(|line| line.starts_with(&format!("{name}:")));
    Ok(if has("postgres") { "postgres" } else { "nobody" })
}

fn as_user(program: &str) -> Result<std::process::Command> {
    need(&["setpriv", program])?;
    let user = user()?;
    let mut command = command("setpriv");
    command.args([&format!("--reuid={user}"), "--clear-groups", "--"]).arg(find(program).context("program")?);
    command.current_dir("/");
    Ok(command)
}

fn start_postgres(folder: &Path, mount: &Path) -> Result<Process> {
    let mut postgres = as_user("postgres")?;
    postgres.arg("-D").arg(mount.join("pg")).args(["-c", "listen_addresses="]);
    postgres.arg("-c").arg(format!("unix_socket_directories={}", sockets(folder).display()));
    let mut server = Process::spawn("postgres", postgres, &folder.join("postgres.log"))?;
    crate::time::eventually("PostgreSQL", 60, || {
        server.must_run()?;
        psql(folder, "SELECT 1")
    })?;
    Ok(server)
}

fn stop_postgres(server: &mut Process) -> Result<()> {
    server.signal(rustix::process::Signal::INT)?;
    let status = server.wait(60)?;
    if !status.success() {
        bail!("PostgreSQL ended with {status}: {}", server.tail());
    }
    Ok(())
}

fn psql(folder: &Path, sql: &str) -> Result<String> {
    let host = sockets(folder).display().to_string();
    let psql = find("psql").context("psql")?;
    Ok(run_within(60, with(psql, &["-h", &host, "-U", "harness", "-d", "postgres", "-XAtqc", sql]))?
        .ok()?
        .stdout)
}
