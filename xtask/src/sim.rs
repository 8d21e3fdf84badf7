//! The simulation and the mutation table.

use crate::steps::Program;
use crate::{check, place};
use anyhow::Result;

/// `cargo xtask sim`: the program does it all.
pub fn sim(arguments: &[String]) -> Result<()> {
    check::build().run()?;
    Program::new(place::program("sim"), arguments).run()
}

/// `cargo xtask mutants`: builds the volume driver with the seeded bugs, in a target folder of its own, so
/// that nothing of it is ever taken for the product.
pub fn mutants(arguments: &[String]) -> Result<()> {
    let target = place::target().join("mutants");
    let folder = target.display().to_string();
    let build =
        ["build", "--release", "--package", "tests", "--features", "mutants", "--target-dir", &folder];
    let mut build = Program::cargo(&build);
    build.command.args(["--bin", "sim", "--bin", "mutants"]);
    build.run()?;
    Program::new(target.join("release/mutants"), arguments).run()
}
