use super::*;
use common::clock::SystemClock;
use std::os::unix::fs::PermissionsExt;

fn clock() -> SystemClock {
    SystemClock::new()
}

#[test]
fn a_new_directory_gets_a_format_an_identity_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let first = DataDir::open(&path, &clock()).unwrap();
    assert!(first.created());
    let id = first.id().to_string();
    assert_eq!(id.len(), 32);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    drop(first);
    let again = DataDir::open(&path, &clock()).unwrap();
    assert!(!again.created());
    assert_eq!(again.id(), id, "the identity stays");
}

#[test]
fn a_held_directory_is_refused_and_the_holder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(holder(dir.path()).unwrap(), Holder::Free);
    let held = DataDir::open(dir.path(), &clock()).unwrap();
    let error = DataDir::open(dir.path(), &clock()).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(crate::failure::exit_of(&error), Exit::Conflict);
    assert_eq!(holder(dir.path()).unwrap(), Holder::Held(Some(std::process::id())));
    drop(held);
    assert_eq!(holder(dir.path()).unwrap(), Holder::Free);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"format":3,"id":"x","more":true}"#;
    std::fs::write(dir.path().join("format"), text).unwrap();
    let error = DataDir::open(dir.path(), &clock()).unwrap_err();
    assert!(error.to_string().contains("format 3, newer than the format 2"), "{error}");
    assert_eq!(crate::failure::exit_of(&error), Exit::Usage);
    assert_eq!(std::fs::read_to_string(dir.path().join("format")).unwrap(), text);
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = DataDir::open(dir.path(), &clock()).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert!(!dir.path().join("lock").exists(), "nothing was put there");
}

#[test]
fn an_unreadable_format_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "1", "{\"format\":0}", "\0\0\0"] {
        std::fs::write(dir.path().join("format"), text).unwrap();
        let error = DataDir::open(dir.path(), &clock()).unwrap_err();
        assert!(error.to_string().contains("format"), "{error}");
    }
}

#[test]
fn the_format_before_is_raised_when_all_else_is_done_and_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("format"), "{\"format\":1,\"id\":\"x\"}\n").unwrap();
    let held = DataDir::open(dir.path(), &clock()).unwrap();
    assert_eq!(check_format(dir.path()).unwrap(), Some(1), "opening alone changes nothing");
    held.raise_format().unwrap();
    assert_eq!(check_format(dir.path()).unwrap(), Some(FORMAT));
    drop(held);
    assert_eq!(DataDir::open(dir.path(), &clock()).unwrap().id(), "x");
}
