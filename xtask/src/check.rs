//! All that must pass at a hand-over, the soaks, and the benchmarks.

use crate::steps::{Program, Steps};
use crate::{arch, fuzz, packages, place, tester};
use anyhow::{Result, bail};
use clap::Args;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

/// `cargo xtask test`.
#[derive(Args)]
pub struct Test {
    /// Only the tests whose name holds this
    pub filter: Option<String>,
}

/// `cargo xtask soak`.
#[derive(Args)]
pub struct Soak {
    /// Rounds of random writes with kill -9, on each backend
    #[arg(long, default_value_t = 1000)]
    pub kill_rounds: u64,
    /// Power cuts under load
    #[arg(long, default_value_t = 100)]
    pub torn_rounds: u64,
    /// Rounds of each database with kill -9
    #[arg(long, default_value_t = 20)]
    pub db_rounds: u64,
    /// Seconds that the object store is away under load
    #[arg(long, default_value_t = 600)]
    pub outage_seconds: u64,
    /// Only the tests whose name holds this
    pub filter: Option<String>,
}

#[derive(Default)]
struct Sum {
    passed: usize,
    failed: usize,
}

/// Installs what the tests need.
pub fn prepare() -> Result<()> {
    packages::for_tests()?;
    packages::s3_server()?;
    tester::build()
}

/// Clippy over everything, in the one profile: the build scripts' work is shared with the build.
pub fn lint() -> Program {
    Program::cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// Builds every program of the workspace. The whole workspace, always: with a part of it cargo
/// would choose other features, and compile RocksDB and the rest a second time.
pub fn build() -> Program {
    Program::cargo(&["build", "--release", "--workspace", "--bins"])
}

/// `cargo xtask test`.
pub fn test(test: &Test) -> Result<ExitCode> {
    println!(
        "Everything that must pass at a hand-over: about 30 minutes on 2 cores when nothing is built yet,"
    );
    println!("under 15 when it is.");
    let mut steps = Steps::default();
    // Without its packages nothing below makes sense: the error decides the exit code.
    prepare()?;
    steps.step("format", || {
        Program::cargo(&["fmt", "--all", "--check"]).run()?;
        fuzz::format(&["--check"])
    });
    steps.step("architecture", || arch::check(true));
    steps.step("clippy", || lint().run());
    let built = steps.step("build", || build().run());
    let mut sum = Sum::default();
    if built.is_some() {
        steps.step("tests", || run_tests(test.filter.as_deref(), &[], false, &mut sum));
        if test.filter.is_none() && has_doc_tests(&place::root())? {
            steps.step("doc tests", || doc_tests(&mut sum));
        }
        steps.step("RocksDB built once", built_once);
    }
    finish(&steps, sum)
}

/// `cargo xtask soak`.
pub fn soak(soak: &Soak) -> Result<ExitCode> {
    let counts = [
        ("SR_KILL_ROUNDS", soak.kill_rounds),
        ("SR_TORN_ROUNDS", soak.torn_rounds),
        ("SR_DB_ROUNDS", soak.db_rounds),
        ("SR_OUTAGE_SECONDS", soak.outage_seconds),
    ];
    println!("The long counts; hours, not minutes: {counts:?}");
    let mut steps = Steps::default();
    prepare()?;
    let built = steps.step("build", || build().run());
    let mut sum = Sum::default();
    if built.is_some() {
        steps.step("soak", || run_tests(soak.filter.as_deref(), &counts, true, &mut sum));
    }
    finish(&steps, sum)
}

/// `cargo xtask bench`.
pub fn bench(arguments: &[String]) -> Result<()> {
    packages::for_tests()?;
    build().run()?;
    Program::new(place::program("bench"), arguments).run()
}

fn finish(steps: &Steps, sum: Sum) -> Result<ExitCode> {
    steps.print();
    // A failed step that is no test counts as one failure, so that the last line tells the truth.
    let failed = sum.failed.max(steps.failed());
    println!("{} passed, {} failed", sum.passed, failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_tests(filter: Option<&str>, counts: &[(&str, u64)], soak: bool, sum: &mut Sum) -> Result<()> {
    let nextest = Program::cargo(&["nextest", "--version"]).text().is_some();
    let mut program = if nextest {
        let config = place::root().join("tests/nextest.toml").display().to_string();
        let profile = if soak { "soak" } else { "default" };
        let fixed = ["nextest", "run", "--cargo-profile", "release", "--workspace", "--no-fail-fast"];
        let mut program = Program::cargo(&fixed);
        program.command.args(["--config-file", &config, "--profile", profile]);
        if soak {
            program.command.args(["--run-ignored", "all", "-E", &on_demand()]);
        }
        program
    } else {
        Program::cargo(&["test", "--release", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"])
    };
    program.command.args(filter);
    for (name, value) in counts {
        program = program.env(name, value.to_string());
    }
    let succeeded = program.run_watched(!nextest, |line| count(line, sum))?;
    if !succeeded {
        bail!("{} tests failed", sum.failed);
    }
    Ok(())
}

/// The tests of a soak: all that start real programs, less those whose needs are not met here.
fn on_demand() -> String {
    let needs = [
        ("when_the_store_is_killed_too", "s3s-fs", place::find("s3s-fs").is_some()),
        ("s3_service_of_the_environment", "SR_S3_ENDPOINT", env::var_os("SR_S3_ENDPOINT").is_some()),
        ("knows_extended_headers", "SR_NBDINFO", env::var_os("SR_NBDINFO").is_some()),
    ];
    let mut filter = "package(tests)".to_owned();
    for (test, need, _) in needs.iter().filter(|(_, _, met)| !met) {
        println!("left out: *{test}*, for want of {need} (docs/testing.md)");
        filter += &format!(" and not test({test})");
    }
    filter
}

fn doc_tests(sum: &mut Sum) -> Result<()> {
    let program = Program::cargo(&["test", "--release", "--doc", "--workspace"]);
    if !program.run_watched(true, |line| count(line, sum))? {
        bail!("doc tests failed");
    }
    Ok(())
}

/// Adds up what a line of nextest's or of the built-in harness's summary says.
fn count(line: &str, sum: &mut Sum) {
    let line = strip_colours(line);
    let summary = line.trim_start();
    // Indented, it is what a failed test printed, quoted by nextest.
    if !(summary.starts_with("Summary [") || line.starts_with("test result:")) {
        return;
    }
    let words: Vec<&str> = summary.split_whitespace().collect();
    for pair in words.windows(2) {
        let number = || pair[0].parse::<usize>().unwrap_or(0);
        match pair[1].trim_matches([',', ';', '.']) {
            "passed" => sum.passed += number(),
            // nextest tells those that ran out of time apart.
            "failed" | "timed" => sum.failed += number(),
            _ => {}
        }
    }
}

fn strip_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

/// Whether any crate has an example in its documentation that is compiled.
fn has_doc_tests(root: &Path) -> Result<bool> {
    fn look(folder: &Path) -> Result<bool> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') && look(&path)? {
                    return Ok(true);
                }
            } else if name.ends_with(".rs")
                && fs::read_to_string(&path).is_ok_and(|text| opens_an_example(&text))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
    look(root)
}

fn opens_an_example(text: &str) -> bool {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let Some(language) = comment.and_then(|comment| comment.trim().strip_prefix("```")) else { continue };
        if !inside && matches!(language.split(',').next(), Some("" | "rust" | "no_run" | "should_panic")) {
            return true;
        }
        inside = !inside;
    }
    false
}

/// RocksDB costs more than everything else together: it must not be compiled twice.
fn built_once() -> Result<()> {
    let folders = fs::read_dir(place::target().join("release/build"))?.flatten().map(|entry| entry.path());
    let copies = folders.filter(|folder| folder.join("out/librocksdb.a").is_file()).count();
    // A changed lock file or compiler leaves the old copy behind: that is no fault of this run.
    println!("{copies} build(s) of RocksDB in the target folder");
    if copies > 1 {
        println!("warning: more than one; in a new target folder that would be a waste of ten minutes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_harnesses_are_added_up() {
        let mut sum = Sum::default();
        count(
            "     Summary [  12.345s] 30 tests run: 27 passed (1 slow), 2 failed, 1 timed out, 4 skipped",
            &mut sum,
        );
        assert_eq!((sum.passed, sum.failed), (27, 3));
        count(
            "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m2\u{1b}[0m tests run: \u{1b}[1m2\u{1b}[0m passed",
            &mut sum,
        );
        assert_eq!((sum.passed, sum.failed), (29, 3));
        count("test result: ok. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out", &mut sum);
        assert_eq!((sum.passed, sum.failed), (34, 4));
        count("a test that printed 100 passed", &mut sum);
        assert_eq!((sum.passed, sum.failed), (34, 4));
    }

    #[test]
    fn only_examples_that_are_compiled_count() {
        assert!(opens_an_example("/// ```\n/// let x = 1;\n/// ```\n"));
        assert!(!opens_an_example("/// ```text\n/// a picture\n/// ```\nfn f() {}\n"));
    }
}
