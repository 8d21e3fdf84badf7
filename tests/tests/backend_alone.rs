//! The data directory is lost: the vPool is adopted by a new router, and each vDisk comes back
//! from the object store alone, as a prefix of its log that holds everything that was committed.

use anyhow::{Context, Result, ensure};
use tests::model::Promise;
use tests::setup::{DISK, Kind, POOL, Setup};
use tests::time::{eventually, pause};
use tests::workload::Plan;

const BLOCKS: usize = 16384;

fn everything_drained_comes_back(kind: Kind) -> Result<()> {
    let mut setup = Setup::small("adopt", kind, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    let before = setup.router.show(DISK)?;
    for seed in 1..=3 {
        subject.run_for(&Plan { seed, ..Plan::default() }, 300)?;
        setup.router.drain(DISK)?;
        setup.from_backend_alone()?;
        subject.settle(Promise::Everything).with_context(|| format!("life {seed}"))?;
    }
    let after = setup.router.show(DISK)?;
    ensure!(
        before["id"] == after["id"] && before["size_bytes"] == after["size_bytes"],
        "{before} became {after}"
    );
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}

#[test]
fn everything_drained_comes_back_from_a_directory() -> Result<()> {
    everything_drained_comes_back(Kind::Directory)
}

#[test]
fn everything_drained_comes_back_from_s3() -> Result<()> {
    everything_drained_comes_back(Kind::Moto)
}

fn what_comes_back_undrained_is_a_prefix(kind: Kind) -> Result<()> {
    let mut setup = Setup::small("prefix", kind, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    for seed in 1..=4 {
        subject.run_for(&Plan { seed, ..Plan::default() }, 200)?;
        let committed = subject.now();
        setup.router.drain(DISK)?;
        let running = subject.start(&Plan { seed: seed + 100, longest: 64, ..Plan::default() })?;
        // Long enough for seals by age and by size to be under way.
        pause(400 * seed);
        setup.router.kill9()?;
        subject.gather(running)?;
        let after = subject.acknowledged_after(committed);
        setup.from_backend_alone()?;
        subject.settle(Promise::PrefixWith(committed)).with_context(|| format!("life {seed}"))?;
        println!("life {seed}: {after} acknowledged changes came after the drain");
    }
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}

#[test]
fn what_comes_back_undrained_from_a_directory_is_a_prefix_with_all_that_was_committed() -> Result<()> {
    what_comes_back_undrained_is_a_prefix(Kind::Directory)
}

#[test]
fn what_comes_back_undrained_from_s3_is_a_prefix_with_all_that_was_committed() -> Result<()> {
    what_comes_back_undrained_is_a_prefix(Kind::Moto)
}

/// The old data directory turns up again after another router had the vPool: its journal holds
/// writes that nobody saw, and none of them may come back.
#[test]
fn an_old_data_directory_that_comes_back_adds_nothing_and_is_not_believed() -> Result<()> {
    let mut setup = Setup::small("zombie", Kind::Directory, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    subject.run_for(&Plan::default(), 300)?;
    let committed = subject.now();
    setup.router.drain(DISK)?;
    subject.run_for(&Plan { seed: 2, ..Plan::default() }, 100)?;
    setup.router.kill9()?;
    let (data, old) = (setup.router.config.data_dir.clone(), setup.path("old"));
    std::fs::rename(&data, &old)?;
    std::fs::create_dir_all(&data)?;
    setup.router.start_again()?;
    setup.create_pool(POOL, &["--adopt"])?;
    subject.settle(Promise::PrefixWith(committed)).context("adopted")?;
    subject.run_for(&Plan { seed: 3, ..Plan::default() }, 300)?;
    setup.router.drain(DISK)?;
    setup.router.kill9()?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&old, &data)?;
    // What was acknowledged after the last upload is in a write buffer that it does not have: for all it knows.
    setup.router.start_again_unready()?;
    let orphaned = eventually("it is refused", 20, || {
        let said = setup.router.show(DISK)?["reason"].as_str().unwrap_or_default().to_string();
        ensure!(said.contains("orphaned"), "{said}");
        Ok(said)
    })?;
    ensure!(orphaned.contains("force"), "it says what to do: {orphaned}");
    setup.router.cli(&["vdisk", "force", DISK])?;
    ensure!(
        setup.router.show(DISK)?["dtl"]["losses"].as_array().is_some_and(|all| all.len() == 1),
        "it is recorded"
    );
    subject.settle(Promise::Everything).context("with the old data directory")
}

/// A vPool lies there already: creating another one says what was found and changes nothing.
#[test]
fn a_place_that_holds_a_vpool_is_not_taken_without_adopt() -> Result<()> {
    let mut setup = Setup::small("taken", Kind::Directory, "64MiB")?;
    let subject = setup.subject(BLOCKS)?;
    subject.run_for(&Plan::default(), 100)?;
    setup.router.drain(DISK)?;
    setup.router.kill9()?;
    std::fs::remove_dir_all(&setup.router.config.data_dir)?;
    std::fs::create_dir_all(&setup.router.config.data_dir)?;
    setup.router.start_again()?;
    let place = setup.backend.place();
    let mut arguments = vec!["vpool", "create", "q"];
    arguments.extend(place.iter().map(String::as_str));
    let message = setup.router.try_cli(&arguments)?.refused(&["--adopt", "adopt"])?;
    ensure!(message.contains('p'), "the message names the vPool that lies there: {message}");
    setup.create_pool(POOL, &["--adopt"])?;
    subject.settle(Promise::Everything)
}
