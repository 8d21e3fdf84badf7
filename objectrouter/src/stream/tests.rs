use super::*;

/// A small stream of each kind.
fn stream(incremental: bool) -> Vec<u8> {
    let snapshot = |id: u128, name: &str| StreamSnapshot {
        id,
        name: name.parse().unwrap(),
        created_at: 1_700_000_000 + id as u64,
        consistent: id == 2,
        metadata: Bytes::from_static(b"ticket 17"),
    };
    let begin = Begin {
        vdisk: "demo/db".into(),
        size: 64 << 10,
        cluster_size: 4096,
        target: Some(snapshot(2, "tuesday")),
        base: incremental.then(|| snapshot(1, "monday")),
    };
    let mut encoder = Encoder::default();
    let mut out = encoder.begin(&begin).to_vec();
    out.extend(encoder.data(0, &[7; 8192]));
    if !incremental {
        out.extend(encoder.hole(8192, 8192));
    }
    out.extend(encoder.zero(16384, 4096));
    out.extend(encoder.hole(20480, (64 << 10) - 20480));
    out.extend(encoder.end());
    out
}

fn read(bytes: &[u8]) -> Result<Vec<Record>> {
    let mut decoder = Decoder::default();
    let mut records = Vec::new();
    decoder.push(bytes);
    while let Some(record) = decoder.next_record()? {
        records.push(record);
    }
    decoder.finish().map(|()| records)
}

#[test]
fn a_stream_reads_as_it_was_written_in_whatever_pieces_it_comes() {
    for incremental in [false, true] {
        let bytes = stream(incremental);
        let records = read(&bytes).unwrap();
        let Record::Begin(begin) = &records[0] else { panic!("{records:?}") };
        assert_eq!((begin.size, begin.base.is_some()), (64 << 10, incremental));
        assert_eq!(begin.target.as_ref().unwrap().name.as_str(), "tuesday");
        let Some(Record::End(totals)) = records.last() else { panic!("{records:?}") };
        assert_eq!(totals.data, 8192);
        fuzz(&bytes);
    }
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_refused() {
    let bytes = stream(false);
    for n in 0..bytes.len() {
        let error = read(&bytes[..n]).unwrap_err();
        assert!(error.message().contains("cut off"), "{n}: {error}");
    }
    let more = [&bytes[..], &[0]].concat();
    assert!(read(&more).unwrap_err().message().contains("follows its last record"));
}

#[test]
fn a_stream_with_a_wrong_bit_anywhere_is_refused() {
    let bytes = stream(true);
    for bit in (0..bytes.len() * 8).step_by(3) {
        let mut wrong = bytes.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&wrong).is_err(), "bit {bit}");
    }
}

#[test]
fn records_that_are_left_out_doubled_or_beyond_the_end_are_refused() {
    let begin = Begin { vdisk: "a/b".into(), size: 8192, cluster_size: 4096, target: None, base: None };
    let mut encoder = Encoder::default();
    let (first, data) = (encoder.begin(&begin), encoder.data(0, &[1; 4096]));
    let (rest, end) = (encoder.hole(4096, 4096), encoder.end());
    let all = |parts: &[&Bytes]| read(&parts.iter().flat_map(|b| b.to_vec()).collect::<Vec<u8>>());
    assert!(all(&[&first, &data, &rest, &end]).is_ok());
    for (parts, says) in [
        (vec![&first, &rest, &end], "follows one that ends at 0"),
        (vec![&first, &data, &data], "follows one that ends at 4096"),
        (vec![&first, &data, &end], "totals"),
        (vec![&first, &first], "no record of an export"),
        (vec![&first, &data, &rest], "cut off"),
    ] {
        let error = all(&parts).unwrap_err();
        assert!(error.message().contains(says), "{says}: {error}");
    }
    let mut encoder = Encoder::default();
    let beyond = [encoder.begin(&begin), encoder.hole(0, 12288)].concat();
    assert!(read(&beyond).unwrap_err().message().contains("of a vDisk of 8192"));
    let mut encoder = Encoder::default();
    let failed = [encoder.begin(&begin), encoder.failure("the store is away")].concat();
    assert!(read(&failed).unwrap_err().message().contains("the store is away"));
}

#[test]
fn something_else_is_told_apart_from_a_newer_version() {
    let mut bytes = stream(false);
    bytes[8] = 2;
    assert_eq!(read(&bytes).unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(read(&[b'Q'; 100]).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn the_corpus_of_the_fuzzer_is_of_streams_that_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/export_stream");
    for name in ["full", "incremental"] {
        assert!(read(&std::fs::read(folder.join(name)).unwrap()).is_ok(), "{name}");
    }
}
