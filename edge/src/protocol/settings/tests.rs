use super::*;

fn refused(settings: &Settings) -> String {
    settings.check(false).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_reached_from_this_machine_only() {
    Settings::default().check(false).unwrap();
    assert!(is_loopback("edge", &Settings::default().listen).unwrap());
}

#[test]
fn what_other_machines_reach_wants_certificates_of_both_sides() {
    let open = Settings { listen: "0.0.0.0:10810".into(), ..Settings::default() };
    assert!(refused(&open).contains("edge.tls_client_ca"));
    open.check(true).unwrap();
    let file = Some(PathBuf::from("x.pem"));
    let server = Settings { tls: TlsMode::Require, tls_cert: file.clone(), tls_key: file.clone(), ..open };
    assert!(refused(&server).contains("edge.listen"));
    Settings { tls_client_ca: file, ..server }.check(false).unwrap();
}

#[test]
fn what_does_not_go_together_is_named() {
    let file = Some(PathBuf::from("x.pem"));
    assert!(refused(&Settings { tls: TlsMode::Allow, ..Settings::default() }).contains("edge.tls"));
    assert!(refused(&Settings { tls_key: file, ..Settings::default() }).contains("edge.tls"));
    assert!(refused(&Settings { tls: TlsMode::Require, ..Settings::default() }).contains("edge.tls_cert"));
    assert!(
        refused(&Settings { window_requests: 0, ..Settings::default() }).contains("edge.window_requests")
    );
    assert!(refused(&Settings { listen: "nowhere".into(), ..Settings::default() }).contains("edge.listen"));
}
