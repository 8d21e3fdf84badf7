use super::*;

#[test]
fn plain_and_suffixed_sizes_are_powers_of_1024() {
    for (text, bytes) in [
        ("4096", 4096),
        ("0", 0),
        ("512B", 512),
        ("4KiB", 4096),
        ("4k", 4096),
        ("512MiB", 512 << 20),
        ("10GiB", 10 << 30),
        ("10G", 10 << 30),
        ("10 gib", 10 << 30),
        ("1TiB", 1 << 40),
        ("65TiB", 65 << 40),
        ("1.5GiB", 3 << 29),
        ("0.25M", 1 << 18),
    ] {
        assert_eq!(parse(text), Ok(bytes), "{text}");
    }
}

#[test]
fn what_is_not_a_size_is_refused_and_the_error_names_the_text() {
    for text in [
        "",
        "G",
        "-1",
        "10GB",
        "10XiB",
        "1.5",
        "1..5G",
        "1.G",
        ".5G",
        "99999999999G",
        "18446744073709551616",
        "1e9",
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains(&format!("'{text}'")), "{error}");
    }
    assert!(parse("10GB").unwrap_err().contains("GiB"));
}

#[test]
fn sizes_for_people_round_to_one_decimal() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (10 << 30, "10 GiB"),
        (3 << 29, "1.5 GiB"),
        (u64::MAX, "16 EiB"),
    ] {
        assert_eq!(human(bytes), text);
    }
}
