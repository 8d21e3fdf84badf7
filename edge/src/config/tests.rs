use super::*;

fn message(settings: &Settings, insecure: bool) -> String {
    settings.check(insecure).unwrap_err().to_string()
}

#[test]
fn defaults_are_loopback_and_pass() {
    let settings = Settings::default();
    settings.check(false).unwrap();
    assert!(is_loopback("nbd", &settings.listen).unwrap());
}

#[test]
fn beyond_loopback_needs_mutual_tls_or_insecure() {
    for listen in ["0.0.0.0:10809", "192.0.2.1:10809", "[::]:10809", "disk.example:10809"] {
        let mut s = Settings { listen: listen.into(), ..Settings::default() };
        let said = message(&s, false);
        assert!(said.contains("nbd.listen") && said.contains("--insecure"), "{said}");
        s.check(true).unwrap();
        s.tls = TlsMode::Require;
        s.tls_cert = Some("c".into());
        s.tls_key = Some("k".into());
        assert!(
            message(&s, false).contains("nbd.tls_client_ca"),
            "a server certificate alone is no credential"
        );
        s.tls_client_ca = Some("ca".into());
        s.check(false).unwrap();
        s.tls = TlsMode::Allow;
        assert!(s.check(false).is_err(), "with `allow` a client can go without");
    }
    for listen in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:10809", "localhost:10809", "", "[::ffff:127.0.0.1]:1"]
    {
        Settings { listen: listen.into(), ..Settings::default() }.check(false).unwrap();
    }
}

#[test]
fn nonsense_names_its_key() {
    let base = Settings::default();
    let said = message(&Settings { listen: "10809".into(), ..base.clone() }, true);
    assert!(said.contains("nbd.listen") && said.contains("HOST:PORT"), "{said}");
    assert!(message(&Settings { max_connections: 0, ..base.clone() }, true).contains("nbd.max_connections"));
    assert!(message(&Settings { tls: TlsMode::Require, ..base.clone() }, true).contains("nbd.tls_cert"));
    assert!(message(&Settings { tls_cert: Some("x".into()), ..base }, true).contains("nbd.tls"));
}
