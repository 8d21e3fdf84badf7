//! An ext4 file system on an export: nbdfuse makes a file of the export, a loop device a disk of
//! the file. Needs root. (qemu's own FUSE export is known to corrupt data below a loop device;
//! nbdfuse is not.)

use crate::process::Process;
use crate::tools::{command, need_mounts, run, run_within};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// An export as a local file.
pub struct FuseDisk {
    process: Process,
    /// The file.
    pub file: PathBuf,
}

impl FuseDisk {
    /// Mounts the export `uri` as the file `folder/disk`.
    pub fn attach(folder: &Path, uri: &str) -> Result<Self> {
        need_mounts()?;
        let (file, pid) = (folder.join("disk"), folder.join("nbdfuse.pid"));
        std::fs::write(&file, "")?;
        let _ = std::fs::remove_file(&pid);
        let mut nbdfuse = command("nbdfuse");
        nbdfuse.arg("-P").arg(&pid).arg(&file).arg(uri);
        let mut process = Process::spawn("nbdfuse", nbdfuse, &folder.join("nbdfuse.log"))?;
        let disk = crate::time::eventually("nbdfuse", 30, || {
            process.must_run()?;
            match std::fs::metadata(&pid) {
                Ok(written) if written.len() > 0 => Ok(()),
                _ => bail!("no pid file"),
            }
        });
        disk?;
        Ok(Self { process, file })
    }

    /// Checks the file system on it without changing anything: the text of e2fsck, which must find it clean.
    pub fn must_be_clean(&self) -> Result<String> {
        Ok(run("e2fsck", ["-fn", &self.file.display().to_string()])?.stdout)
    }

    /// Detaches; flushes first.
    pub fn detach(mut self) -> Result<()> {
        run("fusermount3", ["-u", &self.file.display().to_string()])?;
        let status = self.process.wait(60)?;
        if !status.success() {
            bail!("nbdfuse ended with {status}: {}", self.process.tail());
        }
        Ok(())
    }

    fn drop_now(&mut self) {
        let mut unmount = command("fusermount3");
        unmount.args(["-u", "-z"]).arg(&self.file);
        // It may be unmounted already; then there is nothing to do.
        let _ = run_within(20, unmount);
        let _ = self.process.kill9();
    }
}

impl Drop for FuseDisk {
    fn drop(&mut self) {
        self.drop_now();
    }
}

/// A mounted ext4. Fields end in this order.
pub struct Mount {
    point: PathBuf,
    device: String,
    disk: Option<FuseDisk>,
}

impl Mount {
    /// Attaches the export, makes a file system when asked to, mounts it on `folder/mnt`.
    pub fn new(folder: &Path, uri: &str, format: bool) -> Result<Self> {
        let disk = FuseDisk::attach(folder, uri)?;
        let file = disk.file.display().to_string();
        if format {
            run("mkfs.ext4", ["-q", "-F", "-E", "nodiscard", &file])?;
        }
        let device = run("losetup", ["--show", "-f", &file])?.stdout.trim().to_string();
        let point = folder.join("mnt");
        std::fs::create_dir_all(&point)?;
        let mount = Self { point, device, disk: Some(disk) };
        run("mount", [&mount.device, &mount.point.display().to_string()])?;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts, checks the file system, detaches.
    pub fn close(mut self) -> Result<()> {
        run("umount", [&self.point])?;
        run("losetup", ["-d", &self.device])?;
        let disk = self.disk.take().context("attached")?;
        crate::time::eventually("release of the loop device", 30, || {
            let used = run("losetup", ["-j", &disk.file.display().to_string()])?.stdout;
            if used.trim().is_empty() { Ok(()) } else { bail!("still used: {used}") }
        })?;
        disk.must_be_clean()?;
        disk.detach()
    }

    /// Tears everything down after the server was killed: what was not written is lost, and errors
    /// on the way are expected.
    pub fn abandon(mut self) {
        self.tear_down();
    }

    fn tear_down(&mut self) {
        let Some(mut disk) = self.disk.take() else { return };
        // nbdfuse first: with it gone, writes fail at once and the unmount cannot hang.
        let _ = disk.process.kill9();
        let point = self.point.display().to_string();
        for (program, arguments) in [
            ("umount", vec![point.as_str()]),
            ("umount", vec!["-l", &point]),
            ("losetup", vec!["-d", &self.device]),
        ] {
            let mut once = command(program);
            once.args(arguments);
            let _ = run_within(60, once);
        }
        disk.drop_now();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.tear_down();
    }
}
