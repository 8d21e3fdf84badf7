use super::*;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, Nonce};

fn passphrase(text: &str) -> Unlock {
    Unlock::passphrase(text).unwrap()
}

#[test]
fn a_passphrase_unlocks_what_it_wrapped_and_no_other_does() {
    let (master, wrapped) = Master::create(&passphrase("correct horse")).unwrap();
    let json = serde_json::to_string(&wrapped).unwrap();
    let wrapped: WrappedMaster = serde_json::from_str(&json).unwrap();
    let again = Master::unlock(&wrapped, &passphrase("correct horse")).unwrap();
    assert!(*again.0 == *master.0);
    let error = Master::unlock(&wrapped, &passphrase("incorrect horse")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.message().contains("passphrase is not the one"), "{error}");
    let error = Master::unlock(&wrapped, &Unlock::KeyFile(Zeroizing::new([0; 32]))).unwrap_err();
    assert!(error.message().contains("a key file was given"), "{error}");
    Unlock::passphrase("short").unwrap_err();
}

#[test]
fn another_passphrase_changes_one_record_and_no_key() {
    let (master, old) = Master::create(&passphrase("the old one")).unwrap();
    let (key, record) = master.new_key(3, 1).unwrap();
    let new =
        Master::unlock(&old, &passphrase("the old one")).unwrap().wrap(&passphrase("the new one")).unwrap();
    Master::unlock(&new, &passphrase("the old one")).unwrap_err();
    let again = Master::unlock(&new, &passphrase("the new one")).unwrap().key(3, &record).unwrap();
    assert!(*again.key == *key.key);
    assert_ne!(old, new);
}

#[test]
fn a_key_of_another_namespace_or_a_changed_record_is_refused() {
    let unlock = Unlock::KeyFile(Zeroizing::new([1; 32]));
    let (master, _) = Master::create(&unlock).unwrap();
    let (_, record) = master.new_key(3, 1).unwrap();
    assert_eq!(master.key(4, &record).unwrap_err().kind, ErrorKind::Corrupt);
    master.key(3, &WrappedKey { number: 2, ..record.clone() }).unwrap_err();
    let mut changed = record;
    changed.key.sealed.0[0] ^= 1;
    master.key(3, &changed).unwrap_err();
    // A record that asks for all of the memory.
    let (_, mut greedy) = Master::create(&passphrase("correct horse")).unwrap();
    if let Stretch::Argon2id { memory_kib, .. } = &mut greedy.stretch {
        *memory_kib = u32::MAX;
    }
    assert_eq!(Master::unlock(&greedy, &passphrase("correct horse")).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn nothing_shows_a_key() {
    let secret = "a passphrase that must not be seen";
    let unlock = passphrase(secret);
    let (master, wrapped) = Master::create(&unlock).unwrap();
    let (key, record) = master.new_key(1, 1).unwrap();
    let object = key.object(ObjectId(1)).unwrap();
    let error = Master::unlock(&wrapped, &passphrase("another one")).unwrap_err();
    let shown = format!("{unlock:?} {master:?} {key:?} {object:?} {error} {wrapped:?} {record:?}");
    assert!(!shown.contains(secret) && !shown.contains("another one"), "{shown}");
    for key in [&master.0, &key.key] {
        let (hex, debug) =
            (key.iter().map(|b| format!("{b:02x}")).collect::<String>(), format!("{:?}", &key[..8]));
        assert!(!shown.contains(&hex[..16]) && !shown.contains(debug.trim_matches(['[', ']'])), "{shown}");
    }
}

#[test]
fn key_files_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    create_key_file(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(create_key_file(&path).unwrap_err().kind, ErrorKind::Conflict);
    let (_, wrapped) = Master::create(&Unlock::from_key_file(&path).unwrap()).unwrap();
    Master::unlock(&wrapped, &Unlock::from_key_file(&path).unwrap()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Unlock::from_key_file(&path).unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.message().contains("chmod 0600"), "{error}");
    let other = folder.path().join("other");
    create_key_file(&other).unwrap();
    let error = Master::unlock(&wrapped, &Unlock::from_key_file(&other).unwrap()).unwrap_err();
    assert!(error.message().contains("key file is not the one"), "{error}");
    std::fs::write(&other, "no key").unwrap();
    assert_eq!(Unlock::from_key_file(&other).unwrap_err().kind, ErrorKind::Invalid);
    std::fs::write(&other, "the passphrase\nand a comment").unwrap();
    let Unlock::Passphrase(text) = Unlock::from_passphrase_file(&other).unwrap() else {
        panic!("no passphrase")
    };
    assert_eq!(*text, "the passphrase");
}

/// The fast path against the reference: what ring seals, chacha20poly1305 opens, and the other way round.
#[test]
fn frames_are_sealed_as_the_reference_does() {
    let bytes = [42u8; 32];
    let unbound = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &bytes).unwrap();
    let ours = ObjectKey(aead::LessSafeKey::new(unbound));
    let reference = ChaCha20Poly1305::new(&Key::from(bytes));
    for (number, len) in [(0u32, 1usize), (1, 16), (7, 4096), (u32::MAX, 65_537)] {
        let plain: Vec<u8> = (0..len).map(|i| (i * 31 + number as usize) as u8).collect();
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&number.to_le_bytes());
        let (mut by_us, mut by_it) = (plain.clone(), plain.clone());
        let tag = ours.seal(number, b"what", &mut by_us).unwrap();
        let their_tag =
            reference.encrypt_inout_detached(&Nonce::from(nonce), b"what", (&mut by_it[..]).into()).unwrap();
        assert!(by_us == by_it && tag[..] == their_tag[..]);
        assert!(ours.open(number, b"what", &mut by_it, tag) && by_it == plain);
        for (n, what) in [(number.wrapping_add(1), &b"what"[..]), (number, b"else")] {
            assert!(!ours.open(n, what, &mut by_us.clone(), tag));
        }
    }
}

#[test]
fn each_object_has_a_key_of_its_own() {
    let (master, _) = Master::create(&Unlock::KeyFile(Zeroizing::new([1; 32]))).unwrap();
    let (key, _) = master.new_key(1, 1).unwrap();
    let sealed = |id: u128| {
        let mut frame = *b"the same content";
        key.object(ObjectId(id)).unwrap().seal(0, b"", &mut frame).unwrap();
        frame
    };
    assert_eq!(sealed(1), sealed(1));
    assert_ne!(sealed(1), sealed(2));
    assert_ne!(random_id().unwrap(), random_id().unwrap());
}
