//! Where things are.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The workspace's root.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.parent().map(Path::to_path_buf).unwrap_or(package)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root().join(folder.unwrap_or_else(|| "target".into()))
}

/// Where tools that no package brings are built.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// A program of the workspace, as `cargo build --release` leaves it.
pub fn program(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Where something to play with keeps its data unless told otherwise.
pub fn data(name: &str) -> Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let data = data.or_else(home).context("neither XDG_DATA_HOME nor HOME is set; say --data-dir DIR")?;
    Ok(data.join(name))
}

/// Where a program of the system lies.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let all = path.split(':').chain(["/usr/bin", "/usr/sbin", "/sbin", "/bin"]);
    all.map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}
