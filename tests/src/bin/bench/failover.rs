//! How long clients of three routers wait: owners that are killed, a planned move, a restart of all.

use super::Options;
use super::figures::{Spread, at_most};
use anyhow::{Result, ensure};
use tests::cluster::Cluster;
use tests::edge::EdgeServe;
use tests::pauses;
use tests::tools::need;

/// Prints one line: the longest pause of all rounds is what counts.
fn tell(what: &str, seconds: Vec<f64>, limit: f64) {
    let rounds = seconds.len();
    let spread = Spread::of(seconds);
    println!("{what}, {rounds} rounds: {spread:.2} s ({})", at_most(spread.high, limit));
}

/// See docs/testing.md.
pub fn failover(options: &Options) -> Result<()> {
    need(&["fio"])?;
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| name.contains(only));
    let errors = |serve: &EdgeServe| {
        ensure!(!serve.log().contains("request failed"), "{}", serve.log());
        anyhow::Ok(())
    };
    for (name, settings, limit) in
        [("kill", &[][..], 5.0), ("kill at a lease of 1 s", &["cluster.lease_ms=1000"], 2.0)]
    {
        if wanted(name) {
            let mut cluster =
                Cluster::start("bench-kill", "64MiB", &[settings, &options.settings()].concat())?;
            let serve = cluster.serve()?;
            let rounds: Result<Vec<_>> =
                (0..options.runs).map(|_| pauses::of_a_kill(&mut cluster, &serve)).collect();
            errors(&serve)?;
            tell(&format!("pause after SIGKILL of the owner ({name})"), rounds?, limit);
        }
    }
    if wanted("move") {
        let cluster = pauses::move_cluster("bench-move")?;
        let serve = cluster.serve()?;
        let rounds: Result<Vec<_>> = (0..options.runs).map(|_| pauses::of_a_move(&cluster, &serve)).collect();
        let (waits, moves): (Vec<_>, Vec<_>) = rounds?.into_iter().unzip();
        errors(&serve)?;
        tell("pause in a planned move, 100 MiB unsealed", waits, 1.0);
        println!("  the command itself took {:.2} s", Spread::of(moves));
    }
    if wanted("restart") {
        let mut cluster = Cluster::start("bench-restart", "64MiB", &options.settings())?;
        let serve = cluster.serve()?;
        let rounds: Result<Vec<_>> =
            (0..options.runs.min(5)).map(|_| pauses::of_a_rolling_restart(&mut cluster, &serve)).collect();
        errors(&serve)?;
        println!(
            "restart of all routers, one after the other, without an error: held; pauses {:.2} s",
            Spread::of(rounds?)
        );
    }
    Ok(())
}
