//! A control group with a bound on memory, of either version, for a process under test.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// A group without members yet; removed when dropped, after its members have ended.
pub struct MemoryLimit {
    folder: PathBuf,
    unified: bool,
}

impl MemoryLimit {
    /// Makes a group of at most `bytes`. An error where this machine has no memory controller that
    /// may be used.
    pub fn new(bytes: u64) -> Result<Self> {
        let (place, unified) = Self::place()?;
        let folder = place.join(format!("sr-test-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let group = Self { folder, unified };
        let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        group.write(file, bytes)?;
        // Nor may it go to swap instead.
        let swap = if unified { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", bytes) };
        if group.folder.join(swap.0).exists() {
            group.write(swap.0, swap.1)?;
        }
        Ok(group)
    }

    /// The folder where groups are made, and whether it is of version 2.
    fn place() -> Result<(PathBuf, bool)> {
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new) {
            let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            if controllers.split_whitespace().any(|name| name == "memory") {
                // It may be on already.
                let _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
                return Ok((root.into(), true));
            }
        }
        let first = Path::new("/sys/fs/cgroup/memory");
        if first.join("memory.limit_in_bytes").exists() {
            return Ok((first.into(), false));
        }
        bail!("there is no memory controller below /sys/fs/cgroup")
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let path = self.folder.join(file);
        std::fs::write(&path, value.to_string()).with_context(|| format!("{value} to {}", path.display()))
    }

    /// What starts a program within the group (see [`crate::router::Config::under`]).
    pub fn starter(&self) -> Vec<String> {
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.folder.display());
        ["sh", "-c", &join, "sh"].map(str::to_string).to_vec()
    }

    /// How many of its processes were killed for want of memory.
    pub fn kills(&self) -> Result<u64> {
        let (file, key) = (if self.unified { "memory.events" } else { "memory.oom_control" }, "oom_kill");
        let text = std::fs::read_to_string(self.folder.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
            .with_context(|| format!("no {key} in {file}: {text}"))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A process that was killed is a member for a little while.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            crate::time::pause(20);
        }
    }
}
