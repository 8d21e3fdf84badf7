use super::*;

fn place() -> Place {
    let spec = S3Spec { endpoint: Some("https://store.example:9000/".into()), ..S3Spec::new("bkt") };
    Place::new(&spec, "credentials file /etc/keys".into())
}

/// What the person reads, the kind, and whether another attempt is made.
fn answer(status: u16, code: &str) -> (String, ErrorKind, bool) {
    let failure = place().answer(&format!("put 'k' at {}", place()), status, code, "the server's words");
    (failure.error.message().to_string(), failure.error.kind, failure.again)
}

#[test]
fn answers_that_only_a_person_can_change_say_what_to_do() {
    for (status, code, kind, advice) in [
        (403, "InvalidAccessKeyId", ErrorKind::Denied, "access key in credentials file /etc/keys"),
        (403, "SignatureDoesNotMatch", ErrorKind::Denied, "secret key in credentials file /etc/keys"),
        (403, "RequestTimeTooSkewed", ErrorKind::Denied, "this machine's clock differs"),
        (400, "ExpiredToken", ErrorKind::Denied, "session token"),
        (403, "AccessDenied", ErrorKind::Denied, "may not do this"),
        (403, "", ErrorKind::Denied, "credentials file /etc/keys"),
        (404, "NoSuchBucket", ErrorKind::Invalid, "bucket 'bkt' does not exist"),
        (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid, "region than 'us-east-1'"),
        (301, "PermanentRedirect", ErrorKind::Invalid, "correct 'region' or 'endpoint'"),
        (400, "EntityTooLarge", ErrorKind::Invalid, "objects of that size"),
        (400, "MalformedXML", ErrorKind::Invalid, "refuses"),
        (501, "NotImplemented", ErrorKind::Unsupported, "does not offer"),
        (416, "InvalidRange", ErrorKind::Corrupt, "shorter"),
    ] {
        let (message, found, again) = answer(status, code);
        assert_eq!(found, kind, "{code}");
        assert!(!again, "{code} would be tried again");
        assert!(message.contains(advice), "{code}: {message}");
        assert!(message.contains("https://store.example:9000") && message.contains("bkt"), "{message}");
        assert!(message.contains("the server's words") || code.is_empty(), "{message}");
    }
}

#[test]
fn answers_that_pass_by_themselves_are_tried_again() {
    for (status, code) in [
        (503, "SlowDown"),
        (503, ""),
        (500, "InternalError"),
        (502, ""),
        (504, ""),
        (429, ""),
        (400, "RequestTimeout"),
        (409, "ConditionalRequestConflict"),
        (400, "BadDigest"),
    ] {
        let (_, kind, again) = answer(status, code);
        assert!(again, "{status} {code} would not be tried again");
        assert_eq!(kind, ErrorKind::Unavailable, "{status} {code}");
    }
    assert_eq!(answer(403, "QuotaExceeded").1, ErrorKind::NoSpace);
    assert_eq!(answer(507, "").1, ErrorKind::NoSpace);
}

#[test]
fn absent_and_taken_keys_are_answers() {
    assert_eq!(answer(404, "NoSuchKey").1, ErrorKind::NotFound);
    assert_eq!(answer(404, "").1, ErrorKind::NotFound);
    assert_eq!(answer(412, "PreconditionFailed").1, ErrorKind::Conflict);
}

#[test]
fn connections_that_fail_say_why() {
    for (chain, kind, again, advice) in [
        (
            "tcp connect error: Connection refused (os error 111)",
            ErrorKind::Unavailable,
            true,
            "nothing listens",
        ),
        (
            "dns error: failed to lookup address information",
            ErrorKind::Unavailable,
            true,
            "can't be resolved",
        ),
        ("connection reset by peer", ErrorKind::Unavailable, true, "connection failed"),
        ("invalid peer certificate: UnknownIssuer", ErrorKind::Denied, false, "no ca_file is set"),
        ("invalid peer certificate: certificate expired: at", ErrorKind::Denied, false, "has expired"),
        (
            "invalid peer certificate: certificate not valid for name \"a\"",
            ErrorKind::Denied,
            false,
            "host name",
        ),
        ("invalid peer certificate: BadSignature", ErrorKind::Denied, false, "not accepted"),
        (
            "received corrupt message of type InvalidContentType",
            ErrorKind::Invalid,
            false,
            "does not speak TLS",
        ),
    ] {
        let failure = place().no_answer("put", chain);
        assert_eq!((failure.error.kind, failure.again), (kind, again), "{chain}");
        assert!(failure.error.message().contains(advice), "{}", failure.error);
    }
}
