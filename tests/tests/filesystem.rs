//! An ext4 on a vDisk through FUSE: a source tree is compiled on it, and after a kill -9, a restart
//! and a check of the file system everything is there, byte for byte.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use tests::mount::Mount;
use tests::reference::Reference;
use tests::setup::{Kind, Served, Setup};
use tests::tools::{command, need, need_mounts, run, run_within, scratch};

const FILES: usize = 200;

/// A C program of 200 files: each knows a number and a table, the main file adds the numbers up.
fn write_sources(tree: &Path) -> Result<u64> {
    fs::create_dir_all(tree)?;
    let (mut declarations, mut calls, mut objects, mut expected) =
        (String::new(), String::new(), String::new(), 0);
    for number in 0..FILES {
        let value = (number * number + 17) as u64;
        expected += value;
        let table: Vec<String> = (0..400).map(|entry| (entry * number % 251).to_string()).collect();
        let code = format!(
            "#include \"all.h\"\nstatic const unsigned char table[] = {{{}}};\nunsigned long part_{number}(unsigned long x) {{\n  return {value}UL + 0 * table[x % 400];\n}}\n",
            table.join(",")
        );
        fs::write(tree.join(format!("part_{number}.c")), code)?;
        writeln!(declarations, "unsigned long part_{number}(unsigned long x);")?;
        writeln!(calls, "  sum += part_{number}(argc);")?;
        write!(objects, " part_{number}.o")?;
    }
    fs::write(
        tree.join("all.h"),
        format!("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{declarations}"),
    )?;
    let main = format!(
        "#include \"all.h\"\nint main(int argc, char **argv) {{\n  unsigned long sum = 0;\n{calls}  printf(\"%lu\\n\", sum);\n  return 0;\n}}\n"
    );
    fs::write(tree.join("main.c"), main)?;
    let make = format!("program: main.o{objects}\n\tcc -O1 -o $@ $^\n%.o: %.c all.h\n\tcc -O1 -c -o $@ $<\n");
    fs::write(tree.join("Makefile"), make)?;
    Ok(expected)
}

fn compile_and_survive(server: &mut dyn Served, folder: &Path) -> Result<()> {
    need(&["cc", "make", "diff"])?;
    let mount = Mount::new(folder, &server.uri(), true)?;
    let tree = mount.point().join("tree");
    let expected = write_sources(&tree)?;
    let tree = tree.display().to_string();
    let mut make = command("make");
    make.args(["-s", "-j2", "-C", &tree]);
    run_within(300, make)?.ok().context("compiling on the vDisk")?;
    let program = mount.point().join("tree/program").display().to_string();
    let printed = run(&program, [""; 0])?.stdout;
    ensure!(printed.trim() == expected.to_string(), "the program says {printed}, not {expected}");
    let copy = folder.join("copy");
    run("cp", ["-a", &tree, &copy.display().to_string()])?;
    run("cp", ["-r", "/usr/share/doc/.", &mount.point().join("doc").display().to_string()])?;
    mount.close().context("unmount and e2fsck")?;
    server.kill()?;
    server.revive()?;
    let mount = Mount::new(folder, &server.uri(), false)?;
    run("diff", ["-r", &tree, &copy.display().to_string()]).context("the tree after kill -9")?;
    run(
        "diff",
        ["-rq", "--no-dereference", "/usr/share/doc", &mount.point().join("doc").display().to_string()],
    )?;
    run("make", ["-q", "-C", &tree]).context("make finds nothing to do")?;
    ensure!(run(&program, [""; 0])?.stdout.trim() == expected.to_string(), "the program changed its mind");
    // Space is given back through trim, and the file system stays clean.
    fs::remove_dir_all(mount.point().join("doc"))?;
    let mut trim = command("fstrim");
    trim.arg(mount.point());
    let trimmed = run_within(120, trim)?;
    println!("fstrim: {} {}", trimmed.status, trimmed.stderr.trim());
    mount.close().context("unmount and e2fsck after the restart")
}

fn on_the_router(kind: Kind) -> Result<()> {
    need_mounts()?;
    let mut setup = Setup::small("fs", kind, "2GiB")?;
    let folder = scratch("fsmount")?;
    compile_and_survive(&mut setup, folder.path())
}

#[test]
fn a_source_tree_compiles_on_ext4_and_survives_kill_9() -> Result<()> {
    on_the_router(Kind::Directory)
}

#[test]
fn a_source_tree_compiles_on_ext4_and_survives_kill_9_on_s3() -> Result<()> {
    on_the_router(Kind::Moto)
}

#[test]
#[ignore = "shows that the harness itself is sound, over nbdkit"]
fn reference_compiles_on_ext4() -> Result<()> {
    need_mounts()?;
    let folder = scratch("fsref")?;
    let image = folder.path().join("image");
    fs::File::create(&image)?.set_len(2 << 30)?;
    let mut server = Reference::nbdkit(folder.path(), &["file", &image.display().to_string()])?;
    compile_and_survive(&mut server, folder.path())
}
