use super::*;

fn refusal(result: Result<()>) -> String {
    result.unwrap_err().message().to_string()
}

#[test]
fn valid_sizes_pass_to_the_very_ends() {
    for size in [4096, 8192, 10 << 30, MAX_SIZE] {
        check_size(size, 4096).unwrap();
    }
    check_size(65536, 65536).unwrap();
}

#[test]
fn a_refusal_names_the_nearest_valid_size() {
    for (size, cluster, near) in [
        (0, 4096, 4096),
        (1, 4096, 4096),
        (4097, 4096, 4096),
        (6144, 4096, 8192),
        (6143, 4096, 4096),
        (100_000, 65536, 131_072),
        (65 << 40, 4096, MAX_SIZE),
        (u64::MAX, 65536, MAX_SIZE),
        (MAX_SIZE - 1, 4096, MAX_SIZE),
    ] {
        let message = refusal(check_size(size, cluster));
        assert!(message.ends_with(&format!("the nearest valid size is {near} bytes")), "{message}");
        check_size(near, cluster).unwrap();
    }
}

#[test]
fn a_vdisk_only_grows() {
    check_growth(8192, 8192, 4096).unwrap();
    check_growth(8192, 12288, 4096).unwrap();
    assert_eq!(check_growth(8192, 4096, 4096).unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(check_growth(8192, 12289, 4096).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn sco_and_cluster_sizes_are_bounded() {
    check_sco_size(DEFAULT_SCO_SIZE, DEFAULT_CLUSTER_SIZE).unwrap();
    check_sco_size(1 << 20, 65536).unwrap();
    assert!(refusal(check_sco_size(4096, 4096)).contains("1048576"));
    assert!(refusal(check_sco_size(u32::MAX, 4096)).contains("134217728"));
    assert!(check_sco_size((1 << 20) + 4096, 65536).is_err());
    for bad in [0, 1, 2048, 5000, 131_072] {
        assert!(check_cluster_size(bad).is_err(), "{bad}");
    }
    check_cluster_size(65536).unwrap();
}
