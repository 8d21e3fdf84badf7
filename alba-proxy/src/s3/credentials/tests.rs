use super::*;

#[test]
fn both_forms_of_the_file_are_read_and_other_sections_are_not() {
    let alone = parse("# keys\naws_access_key_id = AK\n\naws_secret_access_key=S/=K==\n", "file").unwrap();
    assert_eq!((alone.access_key.as_str(), alone.secret_key.as_str()), ("AK", "S/=K=="));
    let text = "[other]\naws_access_key_id = X\nnonsense = 1\n[default]\nAWS_ACCESS_KEY_ID = AK\n\
                aws_secret_access_key = SK\naws_session_token = T\n[more]\naws_secret_access_key = Y\n";
    let default = parse(text, "file").unwrap();
    assert_eq!((default.access_key.as_str(), default.secret_key.as_str()), ("AK", "SK"));
    assert_eq!(default.session_token.as_deref(), Some("T"));
}

#[test]
fn what_is_missing_is_named_and_no_secret_is_shown() {
    for (text, named) in [
        ("aws_access_key_id = AK\n", "aws_secret_access_key"),
        ("aws_secret_access_key = hunter2\n", "aws_access_key_id"),
        ("aws_access_key_id = AK\nhunter2\n", "line 2"),
        ("[other]\naws_access_key_id = AK\naws_secret_access_key = hunter2", "aws_access_key_id"),
    ] {
        let error = parse(text, "credentials file /k").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message().contains(named) && error.message().contains("/k"), "{error}");
        assert!(!error.message().contains("hunter2"), "{error}");
    }
    let keys = parse("aws_access_key_id = AK\naws_secret_access_key = hunter2", "file").unwrap();
    assert!(!format!("{keys:?}").contains("hunter2"));
}

#[test]
fn the_environment_serves_without_a_file() {
    let of = |pairs: &[(&str, &str)]| {
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        from_environment(move |name| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
    };
    let keys = of(&[(ACCESS, "AK"), (SECRET, "SK"), (TOKEN, "")]).unwrap();
    assert_eq!((keys.access_key.as_str(), keys.session_token), ("AK", None));
    let error = of(&[(ACCESS, "AK"), (SECRET, " ")]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message().contains(SECRET) && error.message().contains("credentials_file"), "{error}");
}

#[test]
fn a_file_that_is_not_there_or_not_of_keys_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = load(Some(&missing)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message().contains("missing"), "{error}");
    assert_eq!(load(Some(dir.path())).unwrap_err().kind, ErrorKind::Invalid);
    let binary = dir.path().join("binary");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert_eq!(load(Some(&binary)).unwrap_err().kind, ErrorKind::Invalid);
}
