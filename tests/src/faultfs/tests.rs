use super::*;
use crate::tools::scratch;
use anyhow::ensure;
use std::fs;
use std::os::unix::fs::FileExt;

fn mounted() -> Result<(FaultFs, PathBuf, tempfile::TempDir)> {
    let folder = scratch("faultfs")?;
    let backing = folder.path().join("backing");
    let mounted = FaultFs::mount(&folder.path().join("mount"), &backing)?;
    Ok((mounted, backing, folder))
}

fn open(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).create(true).truncate(false).open(path)?)
}

#[test]
fn it_passes_on_what_programs_do_to_files() -> Result<()> {
    let (mounted, backing, _folder) = mounted()?;
    let place = mounted.place();
    fs::create_dir_all(place.join("a/b"))?;
    fs::write(place.join("a/b/one"), "1234567890")?;
    fs::rename(place.join("a"), place.join("c"))?;
    ensure!(fs::read(place.join("c/b/one"))? == b"1234567890");
    let file = open(&place.join("c/b/one"))?;
    fs::remove_file(place.join("c/b/one"))?;
    file.set_len(4)?;
    ensure!(file.metadata()?.len() == 4, "an open file lives on without a name");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8192)?;
    ensure!(file.metadata()?.len() == 8192);
    ensure!(!place.join("c/b/one").exists() && !backing.join("c/b/one").exists());
    fs::write(place.join("c/b/two"), vec![7; 3 << 20])?;
    ensure!(fs::read(backing.join("c/b/two"))? == vec![7; 3 << 20]);
    let names: Vec<_> = fs::read_dir(place.join("c/b"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(names == ["two"], "{names:?}");
    std::os::unix::net::UnixListener::bind(place.join("socket"))?;
    std::os::unix::net::UnixStream::connect(place.join("socket")).err().context("nobody listens")?;
    Ok(())
}

#[test]
fn a_power_cut_forgets_some_of_what_was_not_synced_and_nothing_else() -> Result<()> {
    let (mounted, _, _folder) = mounted()?;
    let path = mounted.place().join("file");
    let mut random = fastrand::Rng::with_seed(3);
    let (mut some, mut most) = (false, 0);
    for round in 1..=20u8 {
        let file = open(&path)?;
        file.write_all_at(&[round; 64 << 10], 0)?;
        file.sync_data()?;
        file.write_all_at(&[100 + round; 32 << 10], 0)?;
        file.write_all_at(&[200; 4096], 64 << 10)?;
        drop(file);
        let forgotten = mounted.power_cut(&mut random)?;
        let found = fs::read(&path)?;
        let sectors: Vec<_> = found[..32 << 10].chunks(512).collect();
        ensure!(sectors.iter().all(|s| s.iter().all(|b| *b == s[0] && (*b == round || *b == 100 + round))));
        ensure!(found[32 << 10..64 << 10].iter().all(|byte| *byte == round), "what was synced stays");
        let old = sectors.iter().filter(|s| s[0] == round).count();
        some |= old > 0 && old < 64;
        most = most.max(old);
        ensure!(forgotten >= old && found.len() <= 68 << 10);
        fs::write(&path, "")?;
    }
    ensure!(some && most > 48, "sometimes a part is forgotten, sometimes nearly all: {most}");
    Ok(())
}

#[test]
fn rules_fail_and_delay_and_a_failed_sync_is_not_made_good_by_the_next() -> Result<()> {
    let (mounted, _, _folder) = mounted()?;
    let path = mounted.place().join("journal");
    let (file, other) = (open(&path)?, open(&mounted.place().join("other"))?);
    file.write_all_at(b"old", 0)?;
    file.sync_data()?;
    let number = |outcome: std::io::Result<()>| outcome.err().and_then(|error| error.raw_os_error());
    mounted.when(Op::Write, "journal", Effect::Fail(ENOSPC));
    ensure!(number(file.write_all_at(b"no!", 0)) == Some(ENOSPC));
    other.write_all_at(b"yes", 0)?;
    mounted.heal();
    file.write_all_at(b"new", 0)?;
    mounted.when(Op::Sync, "journal", Effect::Fail(EIO));
    ensure!(number(file.sync_data()) == Some(EIO));
    mounted.heal();
    ensure!(mounted.syncs_after_failure() == 0);
    file.sync_data()?;
    other.sync_data()?;
    ensure!(mounted.syncs_after_failure() == 1);
    ensure!(fs::read(&path)? == b"new", "until the power is cut");
    mounted.power_cut(&mut fastrand::Rng::with_seed(1))?;
    ensure!(fs::read(&path)? == b"old");
    mounted.when(Op::Sync, "", Effect::Delay(Duration::from_millis(100)));
    let watch = crate::time::Stopwatch::start();
    file.sync_data()?;
    ensure!(watch.seconds() > 0.09 && mounted.hits() == 3 && mounted.syncs() == 5);
    Ok(())
}
