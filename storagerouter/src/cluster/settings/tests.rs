use super::*;

fn refused(change: impl FnOnce(&mut ClusterSettings)) -> String {
    let mut settings = ClusterSettings::default();
    change(&mut settings);
    settings.check(false).unwrap_err().message().to_string()
}

#[test]
fn what_can_not_be_right_is_named() {
    ClusterSettings::default().check(false).unwrap();
    assert!(refused(|s| s.lease_ms = 499).contains("cluster.lease_ms"));
    assert!(refused(|s| s.lease_ms = 60_001).contains("cluster.lease_ms"));
    assert!(refused(|s| s.domains = vec!["a b".into()]).contains("cluster.domains"));
    assert!(refused(|s| s.recovery_domains = vec!["".into()]).contains("cluster.recovery_domains"));
    for host in ["", "a:1", "http://a", "[::1]"] {
        assert!(refused(|s| s.advertise = host.into()).contains("cluster.advertise"), "{host}");
    }
    assert!(refused(|s| s.listen = "".into()).contains("cluster.listen"));
    assert!(refused(|s| s.tls_key = Some("k".into())).contains("all of them"));
}

#[test]
fn beyond_loopback_needs_tls_or_an_explicit_choice() {
    for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "router-b:1"] {
        assert!(refused(|s| s.listen = address.into()).contains("cluster.tls_cert"), "{address}");
        let settings = ClusterSettings { listen: address.into(), ..ClusterSettings::default() };
        settings.check(true).unwrap();
        let file = || Some(PathBuf::from("x.pem"));
        let guarded = ClusterSettings { tls_cert: file(), tls_key: file(), tls_ca: file(), ..settings };
        guarded.check(false).unwrap();
        let dtl = guarded.dtl(&dtl::config::Settings { listen: address.into(), ..Default::default() });
        dtl.check(false).unwrap();
    }
}

#[test]
fn an_address_is_one_that_can_be_connected_to() {
    let with = |host: &str| ClusterSettings { advertise: host.into(), ..ClusterSettings::default() };
    assert_eq!(with("router-a").advertised(7), "router-a:7");
    assert_eq!(with("2001:db8::1").advertised(7), "[2001:db8::1]:7");
    for host in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"] {
        assert!(is_this_machine(host), "{host}");
    }
    for host in ["router-a", "192.0.2.1", "[2001:db8::1]"] {
        assert!(!is_this_machine(host), "{host}");
    }
}

#[test]
fn a_file_that_does_not_do_is_named_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let settings = ClusterSettings {
        tls_cert: Some(empty.clone()),
        tls_key: Some(empty.clone()),
        tls_ca: Some(empty),
        ..ClusterSettings::default()
    };
    let message = settings.tls().err().unwrap().to_string();
    assert!(message.contains("cluster.tls_ca") && message.contains("empty.pem"), "{message}");
}
