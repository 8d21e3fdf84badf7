//! The oracle, over servers that are not ours: one that keeps its data through kill -9 must pass,
//! and each way of losing or mixing data must be caught. Without this, a green kill loop says nothing.

use anyhow::Result;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tests::block::BLOCK;
use tests::model::Promise;
use tests::reference::Reference;
use tests::time::pause;
use tests::tools::scratch;
use tests::workload::{Plan, Subject};

const BLOCKS: usize = 4096;

/// nbdkit over a file. The kernel may mix a read of a file with a write at the same time, so it takes one
/// request after the other.
fn file_server(folder: &Path, file: &Path) -> Result<Reference> {
    let file = file.display().to_string();
    Reference::nbdkit(folder, &["--filter=noparallel", "file", &file, "serialize=all-requests"])
}

#[test]
fn a_server_that_keeps_what_it_acknowledged_passes() -> Result<()> {
    let folder = scratch("oracle")?;
    let file = folder.path().join("disk");
    fs::File::create(&file)?.set_len((BLOCKS * BLOCK) as u64)?;
    let mut server = file_server(folder.path(), &file)?;
    let subject = Subject::new(server.endpoint(), "x", BLOCKS)?;
    for seed in 1..=4 {
        let running = subject.start(&Plan { seed, ..Plan::default() })?;
        pause(150);
        server.kill_and_restart()?;
        assert!(subject.gather(running)? > 0, "the workload did nothing");
        subject.settle(Promise::Everything)?;
    }
    Ok(())
}

#[test]
fn a_server_that_forgets_at_its_death_is_caught() -> Result<()> {
    let folder = scratch("oracle")?;
    let mut server = Reference::nbdkit(folder.path(), &["memory", "16M"])?;
    let subject = Subject::new(server.endpoint(), "x", BLOCKS)?;
    let running = subject.start(&Plan::default())?;
    pause(150);
    server.kill_and_restart()?;
    subject.gather(running)?;
    let verdict = subject.settle(Promise::Everything).unwrap_err().to_string();
    assert!(verdict.contains("lost a later acknowledged change"), "{verdict}");
    Ok(())
}

/// Runs a workload twice over a file, then changes the file as `harm` says (it gets the image
/// after the first workload), and demands that the oracle notices.
fn must_catch(harm: impl Fn(&fs::File, &[u8], &[u8]) -> Result<()>) -> Result<()> {
    let folder = scratch("oracle")?;
    let file = folder.path().join("disk");
    fs::File::create(&file)?.set_len((BLOCKS * BLOCK) as u64)?;
    let mut server = file_server(folder.path(), &file)?;
    let subject = Subject::new(server.endpoint(), "x", BLOCKS)?;
    subject.run_for(&Plan::default(), 150)?;
    let early = subject.image()?;
    subject.run_for(&Plan { seed: 2, ..Plan::default() }, 150)?;
    let late = subject.image()?;
    server.kill9()?;
    harm(&fs::OpenOptions::new().write(true).open(&file)?, &early, &late)?;
    server.kill_and_restart()?;
    assert!(subject.settle(Promise::Everything).is_err(), "the oracle did not notice");
    Ok(())
}

/// A block that the second workload changed, and that held a write before: unlike zeroes, that is
/// nowhere in what the second workload sent, whatever it had in flight at once.
fn changed(early: &[u8], late: &[u8]) -> usize {
    let overwritten = |at: &usize| {
        let [before, after] = [early, late].map(|image| &image[at * BLOCK..][..BLOCK]);
        before != after && before.iter().any(|byte| *byte != 0)
    };
    (0..BLOCKS).find(overwritten).expect("the second workload overwrote something")
}

#[test]
fn one_stale_block_is_caught() -> Result<()> {
    must_catch(|file, early, late| {
        let block = changed(early, late);
        Ok(file.write_all_at(&early[block * BLOCK..][..BLOCK], (block * BLOCK) as u64)?)
    })
}

#[test]
fn one_torn_block_is_caught() -> Result<()> {
    must_catch(|file, early, late| {
        let block = changed(early, late);
        Ok(file.write_all_at(&early[block * BLOCK..][..512], (block * BLOCK) as u64)?)
    })
}

#[test]
fn one_misplaced_block_is_caught() -> Result<()> {
    must_catch(|file, early, late| {
        let block = changed(early, late);
        let other = (block + 1) % BLOCKS;
        let bytes: Vec<u8> = match late[block * BLOCK..][..BLOCK].iter().any(|byte| *byte != 0) {
            true => late[block * BLOCK..][..BLOCK].to_vec(),
            false => early[block * BLOCK..][..BLOCK].to_vec(),
        };
        Ok(file.write_all_at(&bytes, (other * BLOCK) as u64)?)
    })
}

#[test]
fn a_block_that_was_never_written_by_anybody_is_caught() -> Result<()> {
    must_catch(|file, _, _| Ok(file.write_all_at(b"!", (BLOCKS * BLOCK / 2) as u64)?))
}
