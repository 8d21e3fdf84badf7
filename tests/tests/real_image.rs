//! A whole root file system of at least 1 GiB goes in through qemu-img and nbdcopy and comes back
//! out identical; it is stored thin, and its file system is clean through a FUSE mount.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tests::block::BLOCK;
use tests::mount::FuseDisk;
use tests::setup::{DISK, Kind, Setup};
use tests::tools::{command, need, run, run_within};

const WANTED: u64 = (11 << 30) / 10;

/// Links installed files below `from` into `to` until there is enough; links cost nothing.
fn stage(from: &Path, to: &Path, staged: &mut u64) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        if *staged >= WANTED {
            return Ok(());
        }
        let (kind, source, target) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() {
            stage(&source, &target, staged)?;
        } else if kind.is_file() {
            if fs::hard_link(&source, &target).is_err() {
                fs::copy(&source, &target)?;
            }
            *staged += entry.metadata()?.len();
        }
    }
    Ok(())
}

/// Makes the image: a sparse file of 2 GiB with an ext4 full of this machine's packages.
fn make_image(folder: &Path) -> Result<(std::path::PathBuf, u64)> {
    let (root, image) = (folder.join("root"), folder.join("image"));
    let mut staged = 0;
    for place in [
        "etc/apt",
        "usr/bin",
        "usr/sbin",
        "usr/share/doc",
        "usr/lib",
        "usr/share",
        "usr/include",
        "usr/local",
    ] {
        let source = Path::new("/").join(place);
        if source.is_dir() && !root.join(place).exists() {
            stage(&source, &root.join(place), &mut staged).with_context(|| format!("staging {place}"))?;
        }
    }
    if staged < 1 << 30 {
        bail!("only {staged} bytes of installed packages here: a root file system of 1 GiB can't be made");
    }
    let mut make = command("mke2fs");
    make.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-d"]).arg(&root).arg(&image).arg("2G");
    run_within(300, make)?.ok()?;
    fs::remove_dir_all(&root)?;
    let allocated = fs::metadata(&image)?.blocks() * 512;
    ensure!(allocated >= 1 << 30, "the image has only {allocated} bytes allocated");
    Ok((image, allocated))
}

/// Clusters of the file that hold anything but zeroes.
fn live_clusters(image: &Path) -> Result<u64> {
    use std::io::Read;
    let mut file = std::io::BufReader::with_capacity(1 << 20, fs::File::open(image)?);
    let (mut block, mut live) = (vec![0; BLOCK], 0);
    while file.read_exact(&mut block).is_ok() {
        live += u64::from(block.iter().any(|byte| *byte != 0));
    }
    Ok(live)
}

fn in_and_out(kind: Kind) -> Result<()> {
    need(&["qemu-img", "nbdcopy", "mke2fs", "e2fsck"])?;
    let mut setup = Setup::with("image", kind, "2GiB", |config| config.set("volumedriver.journal_mib=1024"))?;
    setup.router.cli(&["vdisk", "create", "w", "--vpool", "p", "--size", "2GiB"])?;
    let (image, allocated) = make_image(setup.folder.path())?;
    let live = live_clusters(&image)? * BLOCK as u64;
    let (source, back) = (image.display().to_string(), setup.path("back").display().to_string());
    let (first, second) = (setup.uri(), setup.router.unix_uri("p/w"));

    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W", &source, &first])?;
    run("nbdcopy", ["--flush", &source, &second])?;
    for vdisk in [DISK, "p/w"] {
        setup.router.drain(vdisk)?;
        let stored = setup.router.number(vdisk, "stored_bytes")?;
        // 64 bytes for each cluster is more than its entries in the SCO's index and in the TLog.
        let index = allocated / BLOCK as u64 * 64;
        let most = allocated + allocated * 3 / 100 + index;
        println!("{vdisk}: {allocated} allocated, {live} not zero, {stored} stored");
        ensure!(
            stored <= most,
            "{vdisk} is not thin: {stored} bytes stored of {allocated} allocated (at most {most})"
        );
        ensure!(stored >= live, "{vdisk}: {stored} bytes stored can't hold {live} bytes of data");
        setup.router.cli(&["fsck", vdisk])?;
    }
    // Once from a router that has just written it, once after kill -9, once from the backend alone.
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &source, &second]).context("after writing")?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    run("nbdcopy", [&second, &back])?;
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &source, &back]).context("out through nbdcopy")?;
    fs::remove_file(&back)?;
    setup.from_backend_alone()?;
    run("qemu-img", ["convert", "-f", "raw", "-O", "raw", &first, &back])?;
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &source, &back]).context("out through qemu-img")?;
    if kind == Kind::Directory {
        tests::tools::need_mounts()?;
        let disk = FuseDisk::attach(setup.folder.path(), &first)?;
        disk.must_be_clean()?;
        disk.detach()?;
    }
    Ok(())
}

#[test]
fn a_root_file_system_goes_in_and_out_identical_and_thin() -> Result<()> {
    in_and_out(Kind::Directory)
}

#[test]
fn a_root_file_system_goes_in_and_out_identical_and_thin_on_s3() -> Result<()> {
    in_and_out(Kind::Moto)
}

#[test]
#[ignore = "shows that the image can be made here"]
fn image_is_a_clean_file_system() -> Result<()> {
    let folder = tests::tools::scratch("image")?;
    let (image, allocated) = make_image(folder.path())?;
    println!("{allocated} allocated, {} not zero", live_clusters(&image)? * BLOCK as u64);
    run("e2fsck", ["-fn", &image.display().to_string()])?;
    Ok(())
}
