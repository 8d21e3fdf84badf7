//! Each seeded bug, and that the worlds notice it.

/// The bugs, and the worlds that find each.
#[cfg(feature = "mutants")]
const ALL: [(&str, &str); 8] = [
    ("vote-not-durable", "elections_under_fire_have_one_winner_each"),
    ("ack-before-quorum", "three_members_lose_nothing_and_answer_in_order"),
    ("log-not-synced", "three_members_lose_nothing_and_answer_in_order"),
    ("lease-clock-not-restarted", "three_members_lose_nothing_and_answer_in_order"),
    ("stale-read", "three_members_lose_nothing_and_answer_in_order"),
    ("dedup-forgotten-in-snapshot", "three_members_lose_nothing_and_answer_in_order"),
    ("conflicting-suffix-kept", "three_members_lose_nothing_and_answer_in_order"),
    ("lapsed-lease-renewed", "three_members_lose_nothing_and_answer_in_order"),
];

/// What a run of the worlds in a process of its own says.
#[cfg(feature = "mutants")]
fn worlds(test: &str, mutant: Option<&str>, seeds: &str) -> (bool, String) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("simulation::{test}"), "--nocapture"]).env("KVSTORE_SEEDS", seeds);
    match mutant {
        Some(mutant) => child.env("SR_MUTANT", mutant),
        None => child.env_remove("SR_MUTANT"),
    };
    let output = child.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

#[cfg(feature = "mutants")]
#[test]
fn the_worlds_notice_each_seeded_bug_and_nothing_else() {
    for (mutant, test) in ALL {
        let (fine, told) = worlds(test, None, "0..5");
        assert!(fine && told.contains("1 passed"), "without a bug: {told}");
        let (fine, told) = worlds(test, Some(mutant), "0..1000");
        let why = told.lines().find(|line| line.contains(", seed "));
        println!("{mutant:<28} {}", why.unwrap_or("was not noticed").chars().take(200).collect::<String>());
        assert!(!fine, "{mutant} was not noticed");
    }
}
