//! A client may say anything: the fuzz targets, run over what real clients said (`tests/fuzz/corpus`), and over
//! random changes of it.

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;

fn target(name: &str) -> fn(&[u8]) {
    let found = edge::nbd::fuzz::TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1
}

#[test]
fn options_and_requests_of_any_bytes_are_read_or_refused() {
    mutate::run("nbd_options", target("nbd_options"), 20_000);
    mutate::run("nbd_requests", target("nbd_requests"), 10_000);
}

#[test]
fn a_session_of_any_bytes_ends() {
    mutate::run("nbd_session", target("nbd_session"), 6000);
}

#[test]
fn every_target_has_a_corpus() {
    for (name, _) in edge::nbd::fuzz::TARGETS {
        mutate::corpus(name);
    }
}
