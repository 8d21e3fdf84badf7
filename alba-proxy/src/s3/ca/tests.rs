use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

fn authority(until: (i32, u8, u8)) -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(1990, 1, 1);
    params.not_after = date_time_ymd(until.0, until.1, until.2);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn load_text(text: &[u8], now: u64) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load(file.path(), Duration::from_secs(now))
}

#[test]
fn an_authority_is_taken_until_the_second_it_expires() {
    // 2031-03-01 00:00 and, beyond what the short form of a date holds, 2060-02-29 00:00.
    for (until, seconds) in [((2031, 3, 1), 1_930_089_600u64), ((2060, 2, 29), 2_845_238_400)] {
        let pem = authority(until);
        assert_eq!(load_text(pem.as_bytes(), seconds).unwrap(), pem.as_bytes());
        let error = load_text(pem.as_bytes(), seconds + 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error.message().contains("expired") && error.message().contains("ca_file"), "{error}");
    }
}

#[test]
fn one_that_expired_beside_one_that_did_not_is_no_error() {
    let both = format!("{}{}", authority((2000, 1, 1)), authority((2040, 1, 1)));
    load_text(both.as_bytes(), 1_800_000_000).unwrap();
}

#[test]
fn what_is_not_a_certificate_is_an_error_and_never_a_panic() {
    let pem = authority((2040, 1, 1));
    let cut = &pem[..pem.len() / 2];
    let garbled = pem.replacen("MII", "AAA", 1);
    for text in
        ["", "hello", cut, garbled.as_str(), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"]
    {
        assert_eq!(load_text(text.as_bytes(), 0).unwrap_err().kind, ErrorKind::Invalid, "{text}");
    }
    assert_eq!(load_text(&[0xff; 100], 0).unwrap_err().kind, ErrorKind::Invalid);
    let missing = load(Path::new("/nonexistent/ca.pem"), Duration::ZERO).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound);
}

proptest::proptest! {
    #[test]
    fn any_bytes_can_be_looked_through(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = not_after(&bytes);
        let _ = unix_seconds(0x17, &String::from_utf8_lossy(&bytes));
    }
}
