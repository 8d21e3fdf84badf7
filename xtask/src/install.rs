//! The edge client for C, installed: its header, its library in both forms, and how to find them.

use crate::place;
use crate::steps::Program;
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::path::PathBuf;

/// `cargo xtask edge-c`.
#[derive(Args)]
pub struct EdgeC {
    /// Goes to PREFIX/include, PREFIX/lib and PREFIX/lib/pkgconfig
    #[arg(long, default_value = "/usr/local")]
    pub prefix: PathBuf,
    /// Install what is built already
    #[arg(long)]
    pub built: bool,
}

/// Installs it.
pub fn edge_c(args: &EdgeC) -> Result<()> {
    if !args.built {
        // The whole workspace, for the reason that `check::build` has.
        Program::cargo(&["build", "--release", "--workspace", "--bins", "--lib"]).run()?;
    }
    let prefix = std::path::absolute(&args.prefix)?;
    let (include, lib) = (prefix.join("include"), prefix.join("lib"));
    let config = lib.join("pkgconfig");
    for folder in [&include, &config] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let header = "storagerouter_edge.h";
    let mut copies = vec![(place::root().join("edge/c/include").join(header), include.join(header))];
    for name in ["libstoragerouter_edge.so", "libstoragerouter_edge.a"] {
        copies.push((place::target().join("release/deps").join(name), lib.join(name)));
    }
    for (from, to) in copies {
        // Beside it first: a program that runs with the old one keeps it.
        let beside = to.with_extension("new");
        fs::copy(&from, &beside)
            .and_then(|_| fs::rename(&beside, &to))
            .with_context(|| format!("installing {} as {}", from.display(), to.display()))?;
    }
    let file = config.join("storagerouter-edge.pc");
    let text = format!(
        "prefix={}\nincludedir=${{prefix}}/include\nlibdir=${{prefix}}/lib\n\n\
         Name: storagerouter-edge\nDescription: Client of storagerouter's edge protocol\nVersion: {}\n\
         Cflags: -I${{includedir}}\nLibs: -L${{libdir}} -lstoragerouter_edge\nLibs.private: -lpthread -ldl -lm\n",
        prefix.display(),
        env!("CARGO_PKG_VERSION"),
    );
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    println!(
        "installed in {}; programs find it by: pkg-config --cflags --libs storagerouter-edge",
        prefix.display()
    );
    Ok(())
}
