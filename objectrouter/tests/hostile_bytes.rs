//! Records of the registry, names and sizes may be anything: the fuzz targets, run over their corpus
//! (`tests/fuzz/corpus`), and over random changes of it.

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;

#[test]
fn records_and_names_of_any_bytes_are_read_the_same_or_refused() {
    for (name, target) in objectrouter::fuzzing::TARGETS {
        mutate::run(name, *target, 5000);
    }
}
