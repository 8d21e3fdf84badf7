//! The architecture, checked: crate arrows point down and nowhere else, no file grows without
//! end, and no crate comes in that was decided against.

use crate::place;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which crate may depend on which of ours. What is absent is the architecture.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "storagerouter",
        &[
            "framework",
            "objectrouter",
            "volumedriver",
            "alba-proxy",
            "kvstore",
            "edge",
            "edge-client",
            "dtl",
            "asd",
            "common",
        ],
    ),
    ("framework", &["objectrouter", "alba-proxy", "common"]),
    ("objectrouter", &["volumedriver", "dtl", "edge", "edge-client", "common"]),
    ("volumedriver", &["dtl", "common"]),
    ("alba-proxy", &["common"]),
    ("kvstore", &["common"]),
    ("edge", &["edge-client", "common"]),
    // A hypervisor's host links these two, and nothing that serves.
    ("edge-c", &["edge-client", "common"]),
    ("edge-client", &["common"]),
    ("dtl", &["common"]),
    ("asd", &["common"]),
    ("common", &[]),
    // The harness drives processes; its simulations, the volume driver alone and routers with all that is below them; its
    // benchmarks, the registry beside etcd.
    ("tests", &["objectrouter", "volumedriver", "dtl", "edge", "edge-client", "kvstore", "common"]),
    ("xtask", &[]),
];

/// A client's tests stand on its server, and a storage daemon's on the table that the binary gives it: as at run time,
/// and nowhere else.
const TESTED_WITH: &[(&str, &str)] = &[("edge-c", "edge"), ("asd", "kvstore")];

/// Crates that were decided against: one TLS and one crypto provider (ring), no C build of either.
const BANNED: &[&str] = &["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];

/// Third-party crates that only one of ours may name, so that the door they stand behind stays one.
const BEHIND_A_DOOR: &[(&str, &str)] =
    &[("rocksdb", "kvstore"), ("raft", "kvstore"), ("aws-sdk-s3", "alba-proxy")];

/// Lines of production code above which a file is named in a warning.
const LONG_FILE: usize = 700;

/// Checks everything; prints what is fine when asked to.
pub fn check(loud: bool) -> Result<()> {
    let root = place::root();
    let mut wrong = Vec::new();
    for member in members(&root)? {
        let manifest = fs::read_to_string(root.join(&member).join("Cargo.toml"))?;
        // A crate that lives inside another one's folder is called after both.
        wrong.extend(check_manifest(&member.replace('/', "-"), &manifest));
        for file in rust_files(&root.join(&member).join("src"))? {
            let lines = production_lines(&file)?;
            if lines > LONG_FILE {
                let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
                println!(
                    "warning: {shown} has {lines} lines of production code (more than {LONG_FILE}): split it"
                );
            }
        }
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap_or_default();
    wrong.extend(check_lock(&lock));
    if !wrong.is_empty() {
        bail!("the architecture is broken:\n  {}", wrong.join("\n  "));
    }
    if loud {
        println!("crate arrows, doors and banned crates: as docs/ARCHITECTURE.md says");
    }
    Ok(())
}

fn members(root: &Path) -> Result<Vec<String>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let list = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    let Some((list, _)) = list else { bail!("Cargo.toml has no list of members") };
    Ok(list
        .split(',')
        .map(|name| name.trim().trim_matches('"').to_string())
        .filter(|name| !name.is_empty())
        .collect())
}

/// The dependencies of one manifest, by section.
fn dependencies(manifest: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_string();
            // A dependency with a table of its own.
            if let Some((parent, dependency)) = section.rsplit_once('.')
                && parent.ends_with("dependencies")
            {
                found.entry(parent.to_string()).or_default().push(dependency.to_string());
            }
        } else if section.ends_with("dependencies") && !line.starts_with('#') {
            let name: String =
                line.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect();
            if !name.is_empty() {
                found.entry(section.clone()).or_default().push(name);
            }
        }
    }
    found
}

/// Everything that a crate reaches along the arrows.
fn below(member: &str) -> Vec<&'static str> {
    let direct = ARROWS.iter().find(|(name, _)| *name == member).map_or(&[][..], |(_, allowed)| *allowed);
    direct.iter().flat_map(|name| below(name).into_iter().chain([*name])).collect()
}

fn check_manifest(member: &str, manifest: &str) -> Vec<String> {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == member) else {
        return vec![format!("crate {member} is not in the table of arrows (xtask/src/arch.rs)")];
    };
    let mut wrong = Vec::new();
    for (section, names) in dependencies(manifest) {
        for name in names {
            let ours = ARROWS.iter().any(|(known, _)| *known == name);
            // A test may stand on anything further down, as the code it tests does at run time.
            let fine = match section.contains("dev-dependencies") {
                true => {
                    below(member).contains(&name.as_str()) || TESTED_WITH.contains(&(member, name.as_str()))
                }
                false => allowed.contains(&name.as_str()),
            };
            if ours && !fine {
                wrong.push(format!("{member}/Cargo.toml [{section}]: {member} must not depend on {name}"));
            }
            if let Some((_, owner)) =
                BEHIND_A_DOOR.iter().find(|(behind, owner)| *behind == name && *owner != member)
            {
                wrong.push(format!("{member}/Cargo.toml [{section}]: only {owner} may name {name}"));
            }
        }
    }
    wrong
}

fn check_lock(lock: &str) -> Vec<String> {
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = "));
    let banned = names.map(|name| name.trim_matches('"')).filter(|name| BANNED.contains(name));
    banned
        .map(|name| {
            format!("Cargo.lock: crate {name} was decided against; find who brings it: cargo tree -i {name}")
        })
        .collect()
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Lines before the tests of a file; a file of tests has none.
fn production_lines(file: &Path) -> Result<usize> {
    if file.file_name().is_some_and(|name| name == "tests.rs")
        || file.components().any(|c| c.as_os_str() == "tests")
    {
        let in_source =
            file.components().skip_while(|c| c.as_os_str() != "src").any(|c| c.as_os_str() == "tests");
        if in_source || file.file_name().is_some_and(|name| name == "tests.rs") {
            return Ok(0);
        }
    }
    Ok(fs::read_to_string(file)?.lines().take_while(|line| line.trim() != "#[cfg(test)]").count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_that_points_up_is_named() {
        let manifest = "[package]\nname = \"edge\"\n[dependencies]\ncommon.workspace = true\nvolumedriver = { path = \"x\" }\n";
        let wrong = check_manifest("edge", manifest);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("edge must not depend on volumedriver"));
        for hidden in [
            "[dev-dependencies]\nkvstore.workspace = true",
            "[dependencies.kvstore]\npath = \"x\"",
            "[target.'cfg(unix)'.dependencies]\nkvstore = \"1\"",
        ] {
            assert_eq!(check_manifest("volumedriver", hidden).len(), 1, "{hidden}");
        }
        assert!(check_manifest("framework", "[dependencies]\nobjectrouter.workspace = true\n").is_empty());
        assert_eq!(check_manifest("newcomer", "").len(), 1);
    }

    #[test]
    fn a_test_may_stand_on_what_is_further_down_and_on_nothing_else() {
        assert!(
            check_manifest("framework", "[dev-dependencies]\nvolumedriver.workspace = true\n").is_empty()
        );
        assert_eq!(check_manifest("framework", "[dependencies]\nvolumedriver.workspace = true\n").len(), 1);
        assert_eq!(check_manifest("dtl", "[dev-dependencies]\nvolumedriver.workspace = true\n").len(), 1);
        assert!(check_manifest("edge-c", "[dev-dependencies]\nedge.workspace = true\n").is_empty());
        assert_eq!(check_manifest("edge-c", "[dependencies]\nedge.workspace = true\n").len(), 1);
    }

    #[test]
    fn a_crate_behind_a_door_is_named_by_its_owner_only() {
        assert!(check_manifest("kvstore", "[dependencies]\nrocksdb.workspace = true\n").is_empty());
        assert_eq!(check_manifest("volumedriver", "[dependencies]\nrocksdb.workspace = true\n").len(), 1);
    }

    #[test]
    fn a_banned_crate_is_found_in_the_lock_file() {
        assert_eq!(check_lock("[[package]]\nname = \"aws-lc-sys\"\n").len(), 1);
        assert!(check_lock("[[package]]\nname = \"ring\"\n").is_empty());
    }

    #[test]
    fn this_workspace_is_as_the_table_says() {
        check(false).unwrap();
    }
}
