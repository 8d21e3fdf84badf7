//! Worlds from a seed: members of a group on disks that tear, a network that lies, clients that retry; and the
//! judge of what they saw.
//!
//! | room | what |
//! |---|---|
//! | `plan` | what kind of world, and what happened in it |
//! | `world` | members, disks, network, faults, in virtual time |
//! | `clients` | who reads, writes, holds leases and watches |
//! | `processes` | the same judge over real processes |
//! | `judge` | whether all answers agree with one sequential execution of the log, in real-time order |
//!
//! `KVSTORE_SEEDS=100..200` runs these seeds instead of the usual ones; `KVSTORE_SEED=7` one of them, told in full.

mod clients;
mod judge;
mod mutants;
mod plan;
mod processes;
mod world;

use plan::{Plan, Tally};
use world::World;

fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let number = |text: &str| text.parse::<u64>().expect("KVSTORE_SEEDS is FROM..TO");
    if let Ok(seed) = std::env::var("KVSTORE_SEED") {
        return number(&seed)..number(&seed) + 1;
    }
    match std::env::var("KVSTORE_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("KVSTORE_SEEDS is FROM..TO");
            number(from)..number(to)
        }
        Err(_) => usual,
    }
}

fn run(name: &str, usual: std::ops::Range<u64>, plan: impl Fn(u64) -> Plan) {
    let mut sum = Tally::default();
    let seeds = seeds(usual);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let tally = World::run(seed, plan(seed)).unwrap_or_else(|why| panic!("{name}, seed {seed}: {why}"));
        sum.add(&tally);
    }
    println!("{name}: {count} worlds: {sum:?}");
    if std::env::var("KVSTORE_SEED").is_err() && count >= 20 {
        sum.check_that_it_happened(name);
    }
}

#[test]
fn three_members_lose_nothing_and_answer_in_order() {
    run("three members", 0..60, |_| Plan { members: 3, ..Plan::default() });
}

#[test]
fn five_members_lose_nothing_and_answer_in_order() {
    run("five members", 0..30, |_| Plan { members: 5, ..Plan::default() });
}

#[test]
fn members_come_and_go_and_nothing_is_lost() {
    run("changing members", 0..40, |_| Plan { members: 3, changes: true, ..Plan::default() });
}

#[test]
fn one_member_loses_nothing() {
    run("one member", 0..20, |_| Plan { members: 1, ..Plan::default() });
}

#[test]
fn one_member_becomes_many() {
    run("growing", 0..20, |_| Plan { members: 1, changes: true, ..Plan::default() });
}

#[test]
fn elections_under_fire_have_one_winner_each() {
    run("elections", 0..40, |_| Plan { members: 5, elections: true, ..Plan::default() });
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 0..4 {
        let plan = || Plan { members: 3, changes: true, ..Plan::default() };
        let one = World::run(seed, plan()).unwrap();
        let two = World::run(seed, plan()).unwrap();
        assert_eq!(one, two, "seed {seed}");
    }
}
