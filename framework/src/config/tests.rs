use super::*;

fn listening(listen: &str) -> Settings {
    Settings { listen: listen.into(), ..Settings::default() }
}

#[test]
fn beyond_loopback_it_takes_tls_and_a_token_or_insecure() {
    for near in ["127.0.0.1:8080", "[::1]:0", "127.9.9.9:1", "[::ffff:127.0.0.1]:80"] {
        listening(near).check(false).unwrap();
    }
    for far in ["0.0.0.0:8080", "[::]:8080", "192.0.2.7:443"] {
        let mut settings = listening(far);
        let refusal = settings.check(false).unwrap_err();
        assert!(refusal.contains("tls_cert") && refusal.contains("token_file"), "{refusal}");
        assert!(refusal.contains("--insecure"), "{refusal}");
        settings.check(true).unwrap();
        settings.token_file = Some("t".into());
        assert!(settings.check(false).unwrap_err().contains("tls_cert"));
        settings.tls_cert = Some("c".into());
        settings.tls_key = Some("k".into());
        settings.check(false).unwrap();
        settings.token_file = None;
        assert!(settings.check(false).unwrap_err().contains("token_file"));
    }
}

#[test]
fn half_a_tls_setting_and_a_bad_address_are_named() {
    assert!(listening("localhost").check(true).unwrap_err().contains("api.listen"));
    let cert = Settings { tls_cert: Some("c".into()), ..Settings::default() };
    assert!(cert.check(false).unwrap_err().contains("api.tls_key is missing"));
    let key = Settings { tls_key: Some("k".into()), ..Settings::default() };
    assert!(key.check(false).unwrap_err().contains("api.tls_cert is missing"));
}

#[test]
fn a_token_is_compared_whole_and_never_shown() {
    let token = Token::new("0123456789abcdef").unwrap();
    assert!(token.is(b"0123456789abcdef"));
    for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdeg", b"0123456789abcdef0"] {
        assert!(!token.is(wrong));
    }
    assert!(!format!("{token:?}").contains("0123"));
    for bad in ["", "short", "0123456789 abcdef", "0123456789abcdé"] {
        assert!(Token::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn files_that_are_missing_or_wrong_are_named_by_their_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path)
    };
    let mut settings = Settings { token_file: file("token", " 0123456789abcdef\n"), ..Settings::default() };
    assert!(settings.token().unwrap().unwrap().is(b"0123456789abcdef"));
    settings.token_file = Some(folder.path().join("nowhere"));
    assert!(settings.token().unwrap_err().message().contains("api.token_file"));
    settings.tls_cert = file("cert", "nothing");
    settings.tls_key = file("key", "nothing");
    assert!(settings.tls().unwrap_err().message().contains("api.tls_cert"));
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    settings.tls_cert = file("cert", &pair.cert.pem());
    assert!(settings.tls().unwrap_err().message().contains("api.tls_key"));
    settings.tls_key = file("key", &pair.signing_key.serialize_pem());
    assert!(settings.tls().unwrap().is_some());
}
