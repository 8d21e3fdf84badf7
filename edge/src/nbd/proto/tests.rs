use super::*;

#[test]
fn a_request_is_decoded_field_by_field_and_only_when_complete() {
    for extended in [false, true] {
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend([0, flag::FUA as u8, 0, 6]);
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(8u64.to_be_bytes());
        if extended {
            bytes.extend(9u64.to_be_bytes());
        } else {
            bytes.extend(9u32.to_be_bytes());
        }
        for cut in 0..bytes.len() {
            assert_eq!(decode_request(&bytes[..cut], extended), Ok(None));
        }
        let request =
            Request { flags: flag::FUA, command: Command::WriteZeroes, cookie: 7, offset: 8, length: 9 };
        assert_eq!(decode_request(&bytes, extended), Ok(Some((request, bytes.len()))));
        assert!(decode_request(&bytes, !extended).is_err(), "the other header's magic");
    }
}

#[test]
fn payload_follows_writes_and_what_an_extended_header_says() {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend([0, flag::PAYLOAD_LEN as u8, 0, 0]);
    bytes.extend([0; 19]);
    bytes.push(5);
    let (compact, _) = decode_request(&bytes, false).unwrap().unwrap();
    assert_eq!(compact.payload(), 0, "the flag means nothing without extended headers");
    assert_ne!(compact.flags, 0, "and is not taken for no flag");
    let request = |command, flags| Request { flags, command, cookie: 0, offset: 0, length: 5 };
    assert_eq!(request(Command::Write, 0).payload(), 5);
    assert_eq!(request(Command::BlockStatus, flag::PAYLOAD_LEN).payload(), 5);
    assert_eq!(request(Command::Read, 0).payload(), 0);
}

#[test]
fn commands_index_their_metrics() {
    for (i, command) in Command::ALL.iter().enumerate() {
        assert_eq!(*command as usize, i, "{}", command.name());
    }
}
