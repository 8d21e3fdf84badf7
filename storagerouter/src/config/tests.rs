use super::*;
use crate::failure::{Exit, exit_of};
use std::collections::BTreeSet;

fn load(file: &str, overrides: &[&str]) -> Result<Settings> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("router.toml");
    std::fs::write(&path, file).unwrap();
    let overrides = overrides.iter().map(|s| s.to_string()).collect();
    Sources { file: Some(path), overrides, ..Sources::default() }.load()
}

#[test]
fn an_empty_file_is_the_defaults_and_they_are_right() {
    let settings = load("", &[]).unwrap();
    assert_eq!(settings, Settings::default());
    settings.check(false).unwrap();
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_the_nearest_known_one() {
    let error = load("[nbd]\nlisten = \"127.0.0.1:1\"\nunx = \"/x\"\n", &[]).unwrap_err();
    let text = error.to_string();
    assert_eq!(exit_of(&error), Exit::Usage);
    for part in ["router.toml", "line 3", "`unx`", "did you mean `unix`?"] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    let text = load("[nbdd]\n", &[]).unwrap_err().to_string();
    assert!(text.contains("`nbdd`") && text.contains("did you mean `nbd`?"), "{text}");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_line() {
    let text = load("shutdown_seconds = \"soon\"\n", &[]).unwrap_err().to_string();
    assert!(text.contains("line 1") && text.contains("shutdown_seconds"), "{text}");
}

#[test]
fn a_file_that_is_not_there_is_a_usage_error_that_names_it() {
    let sources = Sources { file: Some("/nowhere/x.toml".into()), ..Sources::default() };
    let error = sources.load().unwrap_err();
    assert!(error.to_string().contains("/nowhere/x.toml"), "{error}");
    assert_eq!(exit_of(&error), Exit::Usage);
}

#[test]
fn set_is_typed_wins_over_the_file_and_takes_bare_text() {
    let file = "shutdown_seconds = 5\n[nbd]\nlisten = \"127.0.0.1:1\"\n";
    let settings = load(
        file,
        &[
            "shutdown_seconds=7",
            "nbd.listen=127.0.0.1:0",
            "nbd.tls=allow",
            "volumedriver.journal_mib = 8192",
            "log.filter=\"warn\"",
            "nbd.unix=7",
        ],
    )
    .unwrap();
    assert_eq!(settings.shutdown_seconds, 7);
    assert_eq!(settings.nbd.listen, "127.0.0.1:0");
    assert_eq!(settings.nbd.tls, edge::config::TlsMode::Allow);
    assert_eq!(settings.volumedriver.journal_mib, 8192);
    assert_eq!(settings.log.filter, "warn");
    assert_eq!(settings.nbd.unix.as_deref(), Some(Path::new("7")), "a number for a text is text");
}

#[test]
fn a_bad_set_is_refused_and_quoted() {
    for (set, part) in [
        ("nbd.listn=x", "did you mean `listen`?"),
        ("nbd", "key=value"),
        ("shutdown_seconds=soon", "soon"),
        ("shutdown_seconds.x=1", "expected u64"),
        (".=1", "not a key"),
        ("shutdown_seconds=1\nworker_threads=3", "shutdown_seconds"),
    ] {
        let error = load("", &[set]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("--set {set}")) && text.contains(part), "{text}");
        assert_eq!(exit_of(&error), Exit::Usage);
    }
}

#[test]
fn a_setting_that_can_not_be_right_is_named() {
    for (set, part) in [
        ("shutdown_seconds=0", "shutdown_seconds"),
        ("log.filter=inof", "inof"),
        ("volumedriver.segment_mib=0", "volumedriver.segment_mib"),
        ("index.cache_mib=0", "index.cache_mib"),
        ("nbd.listen=0.0.0.0:10809", "nbd.listen"),
        ("edge.listen=0.0.0.0:10810", "edge.listen"),
        ("edge.memory_mib=1", "edge.memory_mib"),
        ("api.listen=0.0.0.0:8080", "api.listen"),
        ("cluster.listen=0.0.0.0:10830", "cluster.listen"),
        ("cluster.lease_ms=10", "cluster.lease_ms"),
        ("dtl.listen=0.0.0.0:10820", "dtl.listen"),
        ("dtl.client.timeout_ms=1", "dtl.client.timeout_ms"),
    ] {
        let settings = load("", &[set]).unwrap();
        let error = settings.check(false).unwrap_err();
        assert!(error.to_string().contains(part), "{set}: {error}");
        assert_eq!(exit_of(&error), Exit::Usage);
    }
    load("", &["nbd.listen=0.0.0.0:10809", "edge.listen=0.0.0.0:10810", "api.listen=0.0.0.0:8080"])
        .unwrap()
        .check(true)
        .unwrap();
}

#[test]
fn what_show_prints_reads_back_as_the_same_settings() {
    let settings = load("", &["nbd.listen=127.0.0.1:5", "data_dir=/srv/x", "log.format=json"]).unwrap();
    let shown = settings.to_toml().unwrap();
    assert_eq!(load(&shown, &[]).unwrap(), settings);
}

/// The keys that a section has, by asking for one that it does not have.
fn known_keys(section: &str) -> BTreeSet<String> {
    let text = if section.is_empty() { "zzz = 1".to_string() } else { format!("[{section}]\nzzz = 1") };
    let error = toml::from_str::<Settings>(&text).unwrap_err();
    let (_, rest) = error.message().split_once("unknown field `zzz`").expect("unknown keys are refused");
    rest.split('`').skip(1).step_by(2).map(str::to_string).collect()
}

#[test]
fn every_key_is_described_and_every_described_key_exists() {
    let mut known = BTreeSet::new();
    let sections: BTreeSet<&str> =
        document::KEYS.iter().filter_map(|(k, _)| k.rsplit_once('.')).map(|(s, _)| s).collect();
    known.extend(known_keys(""));
    for section in &sections {
        known.extend(known_keys(section).into_iter().map(|key| format!("{section}.{key}")));
    }
    known.retain(|key| !sections.contains(key.as_str()));
    let described: BTreeSet<String> = document::KEYS.iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(described, known, "left: described in config/document.rs, right: known to the settings");
}

#[test]
fn the_example_file_is_the_defaults() {
    let example = document::example().unwrap();
    assert_eq!(load(&example, &[]).unwrap(), Settings::default());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/storagerouter.example.toml");
    compare_or_write(&path, "", &example);
}

#[test]
fn the_table_of_the_handbook_is_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    compare_or_write(&path, "configuration", &document::markdown().unwrap());
}

/// Compares a whole file, or the part between `<!-- begin NAME -->` and `<!-- end NAME -->`.
fn compare_or_write(path: &Path, part: &str, wanted: &str) {
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let new = if part.is_empty() {
        wanted.to_string()
    } else {
        let (begin, end) = (format!("<!-- begin {part} -->\n"), format!("<!-- end {part} -->"));
        let (head, rest) = old.split_once(&begin).expect("the marker of the begin");
        let (_, tail) = rest.split_once(&end).expect("the marker of the end");
        format!("{head}{begin}{wanted}{end}{tail}")
    };
    if old != new && std::env::var_os("STORAGEROUTER_WRITE_DOCS").is_some() {
        std::fs::write(path, new).unwrap();
        return;
    }
    assert!(
        old == new,
        "{} is stale: run STORAGEROUTER_WRITE_DOCS=1 cargo test --release -p storagerouter config",
        path.display()
    );
}
