//! SQLite and PostgreSQL on an ext4 on a vDisk, through kill -9 of the router at random moments:
//! the file system is clean, the database finds itself whole, and every commit that returned is
//! there. `SR_DB_ROUNDS` sets how many kills.

use anyhow::Result;
use tests::database::{Database, through_kills};
use tests::reference::Reference;
use tests::setup::{Kind, Setup};
use tests::time::rounds;
use tests::tools::{need_mounts, scratch};

fn on_the_router(database: Database, kind: Kind) -> Result<()> {
    need_mounts()?;
    let mut setup = Setup::small("db", kind, "1GiB")?;
    let folder = scratch("dbmount")?;
    through_kills(database, &mut setup, folder.path(), rounds("SR_DB_ROUNDS", 3))
}

#[test]
fn every_sqlite_commit_that_returned_is_there_after_kill_9() -> Result<()> {
    on_the_router(Database::Sqlite, Kind::Directory)
}

#[test]
fn every_sqlite_commit_that_returned_is_there_after_kill_9_on_s3() -> Result<()> {
    on_the_router(Database::Sqlite, Kind::Moto)
}

#[test]
fn every_postgresql_commit_that_returned_is_there_after_kill_9() -> Result<()> {
    on_the_router(Database::Postgres, Kind::Directory)
}

#[test]
fn every_postgresql_commit_that_returned_is_there_after_kill_9_on_s3() -> Result<()> {
    on_the_router(Database::Postgres, Kind::Moto)
}

fn over_nbdkit(database: Database) -> Result<()> {
    need_mounts()?;
    let folder = scratch("dbref")?;
    let image = folder.path().join("image");
    std::fs::File::create(&image)?.set_len(1 << 30)?;
    let mut server = Reference::nbdkit(folder.path(), &["file", &image.display().to_string()])?;
    through_kills(database, &mut server, folder.path(), 2)
}

#[test]
#[ignore = "shows that the harness itself is sound, over nbdkit"]
fn reference_keeps_sqlite() -> Result<()> {
    over_nbdkit(Database::Sqlite)
}

#[test]
#[ignore = "shows that the harness itself is sound, over nbdkit"]
fn reference_keeps_postgresql() -> Result<()> {
    over_nbdkit(Database::Postgres)
}

/// nbdkit's memory forgets everything when it is killed: the same scenario must fail.
#[test]
fn a_server_that_forgets_is_caught_by_the_database_scenario() -> Result<()> {
    need_mounts()?;
    let folder = scratch("dbneg")?;
    let mut server = Reference::nbdkit(folder.path(), &["memory", "256M"])?;
    assert!(through_kills(Database::Sqlite, &mut server, folder.path(), 1).is_err());
    Ok(())
}
