//! Keys: a passphrase or key file wraps a master key, that wraps the key of each namespace, and of that a key per object is derived.
//!
//! Another passphrase wraps the master key anew and nothing else, so it costs nothing however much is stored. No key is ever
//! shown: not by `Debug`, not in an error, and what held one is overwritten when it is dropped.

use crate::alba::layout::ObjectId;
use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use common::{Error, ErrorKind, Result};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{aead, hkdf};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const SALT_BYTES: usize = 16;
/// What argon2id takes: memory in KiB and passes. OWASP's advice for one thread, and then some: it runs once per start.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
/// What a record may ask for: it must not make us take all memory.
const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_PASSES: u32 = 64;
/// The shortest passphrase.
const MIN_PASSPHRASE: usize = 8;
const MAX_FILE_BYTES: u64 = 4096;

type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// What unlocks the keys of a vPool.
pub enum Unlock {
    /// A passphrase, stretched by argon2id.
    Passphrase(Zeroizing<String>),
    /// The 32 bytes of a key file.
    KeyFile(Secret),
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unlock::Passphrase(_) => "Unlock::Passphrase(..)",
            Unlock::KeyFile(_) => "Unlock::KeyFile(..)",
        })
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let failed = |_| Error::internal("the system gives no random bytes for a key");
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A new random object id. From the system's own source: a repeated id would be a repeated key and nonce, and what a
/// `Clock` draws is too little for that.
pub fn random_id() -> Result<ObjectId> {
    Ok(ObjectId(u128::from_le_bytes(random()?)))
}

impl Unlock {
    /// A passphrase.
    ///
    /// # Errors
    /// `Invalid` when it is too short.
    pub fn passphrase(text: impl Into<String>) -> Result<Self> {
        let text = Zeroizing::new(text.into());
        if text.len() < MIN_PASSPHRASE {
            return Err(Error::invalid(format!("the passphrase has fewer than {MIN_PASSPHRASE} bytes")));
        }
        Ok(Unlock::Passphrase(text))
    }

    /// The passphrase in a file: its first line.
    ///
    /// # Errors
    /// As [`Unlock::from_key_file`].
    pub fn from_passphrase_file(path: &Path) -> Result<Self> {
        let text = read_secret_file(path, "passphrase file")?;
        let wrong = || Error::invalid(format!("passphrase file {}: it is not text", path.display()));
        let text = std::str::from_utf8(&text).map_err(|_| wrong())?;
        let line = text.lines().next().unwrap_or_default();
        Self::passphrase(line).map_err(|e| e.context(format!("passphrase file {}", path.display())))
    }

    /// The key in a file of [`create_key_file`].
    ///
    /// # Errors
    /// `NotFound`, `Denied` (also when others may read it), `Invalid`.
    pub fn from_key_file(path: &Path) -> Result<Self> {
        let text = read_secret_file(path, "key file")?;
        let wrong =
            || Error::invalid(format!("key file {}: it does not hold 64 hexadecimal digits", path.display()));
        let text = std::str::from_utf8(&text).map_err(|_| wrong())?.trim();
        if text.len() != 2 * KEY_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut key = Secret::default();
        for (n, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Unlock::KeyFile(key))
    }

    /// The key that wraps the master key.
    fn key(&self, how: &Stretch) -> Result<Secret> {
        match (self, how) {
            (Unlock::KeyFile(key), Stretch::KeyFile) => Ok(key.clone()),
            (Unlock::Passphrase(text), Stretch::Argon2id { memory_kib, passes, salt }) => {
                if *memory_kib > MAX_MEMORY_KIB || *passes > MAX_PASSES {
                    return Err(Error::corrupt(format!(
                        "the record of the keys asks for {memory_kib} KiB and {passes} passes: more than anybody wrote"
                    )));
                }
                let failed = |e| Error::internal(format!("argon2id: {e}"));
                let params = Params::new(*memory_kib, *passes, 1, Some(KEY_BYTES)).map_err(failed)?;
                let mut key = Secret::default();
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(text.as_bytes(), &salt.0, key.as_mut())
                    .map_err(failed)?;
                Ok(key)
            }
            (Unlock::KeyFile(_), Stretch::Argon2id { .. }) => {
                Err(denied("the keys are wrapped by a passphrase, and a key file was given"))
            }
            (Unlock::Passphrase(_), Stretch::KeyFile) => {
                Err(denied("the keys are wrapped by a key file, and a passphrase was given"))
            }
        }
    }

    fn stretch(&self) -> Result<Stretch> {
        Ok(match self {
            Unlock::KeyFile(_) => Stretch::KeyFile,
            Unlock::Passphrase(_) => Stretch::Argon2id {
                memory_kib: MEMORY_KIB,
                passes: PASSES,
                salt: Hex(random::<SALT_BYTES>()?.into()),
            },
        })
    }
}

fn denied(what: &str) -> Error {
    Error::new(ErrorKind::Denied, what)
}

fn read_secret_file(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>> {
    let told = format!("{what} {}", path.display());
    let meta = std::fs::metadata(path).map_err(|e| Error::io(&told, &e))?;
    if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("{told}: this is not such a file")));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(denied(&format!("{told}: others may read it (mode {mode:04o}); chmod 0600 it")));
    }
    Ok(Zeroizing::new(std::fs::read(path).map_err(|e| Error::io(&told, &e))?))
}

/// Writes a new random key to a file that nobody else may read, durably.
///
/// # Errors
/// `Conflict` when there is such a file: a key is never overwritten.
pub fn create_key_file(path: &Path) -> Result<()> {
    use std::io::Write;
    let told = format!("key file {}", path.display());
    let key = Zeroizing::new(random::<KEY_BYTES>()?);
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_BYTES + 1));
    for byte in key.iter() {
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(0o600).open(path).map_err(|e| Error::io(&told, &e))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    written.and_then(|()| std::fs::File::open(parent)?.sync_all()).map_err(|e| Error::io(&told, &e))
}

/// Bytes that JSON shows as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hex(Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        s.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.len() > 256 || text.len() % 2 == 1 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(serde::de::Error::custom("not hexadecimal digits"));
        }
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(serde::de::Error::custom);
        (0..text.len()).step_by(2).map(byte).collect::<std::result::Result<_, _>>().map(Hex)
    }
}

/// How the wrapping key comes from what unlocks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "by")]
enum Stretch {
    Argon2id { memory_kib: u32, passes: u32, salt: Hex },
    KeyFile,
}

/// A key that is sealed with another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Wrapped {
    nonce: Hex,
    sealed: Hex,
}

fn wrap(with: &Secret, key: &Secret, what: &str) -> Result<Wrapped> {
    let nonce = random::<NONCE_BYTES>()?;
    let payload = Payload { msg: key.as_ref(), aad: what.as_bytes() };
    let sealed = cipher(with)
        .encrypt(&XNonce::from(nonce), payload)
        .map_err(|_| Error::internal(format!("can't wrap {what}")))?;
    Ok(Wrapped { nonce: Hex(nonce.into()), sealed: Hex(sealed) })
}

/// `None` when the wrapping key is another one, or the record was changed.
fn unwrap(with: &Secret, wrapped: &Wrapped, what: &str) -> Option<Secret> {
    let nonce: [u8; NONCE_BYTES] = wrapped.nonce.0.as_slice().try_into().ok()?;
    let payload = Payload { msg: &wrapped.sealed.0, aad: what.as_bytes() };
    let opened = Zeroizing::new(cipher(with).decrypt(&XNonce::from(nonce), payload).ok()?);
    let mut key = Secret::default();
    if opened.len() != KEY_BYTES {
        return None;
    }
    key.copy_from_slice(&opened);
    Some(key)
}

fn cipher(key: &Secret) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&Key::from(**key))
}

/// The master key of a vPool as the registry has it: wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedMaster {
    version: u32,
    stretch: Stretch,
    master: Wrapped,
}

/// The master key of a vPool.
pub struct Master(Secret);

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Master(..)")
    }
}

/// The key of a namespace as its record has it: wrapped by the master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKey {
    /// Which of the namespace's keys.
    pub number: u32,
    key: Wrapped,
}

const MASTER: &str = "storagerouter alba master key 1";
const VERSION: u32 = 1;

fn told(namespace: u32, number: u32) -> String {
    format!("storagerouter alba key {number} of namespace {namespace}")
}

impl Master {
    /// A new master key, wrapped.
    ///
    /// # Errors
    /// `Internal` when the system has no random bytes.
    pub fn create(unlock: &Unlock) -> Result<(Self, WrappedMaster)> {
        let master = Self(Zeroizing::new(random()?));
        let wrapped = master.wrap(unlock)?;
        Ok((master, wrapped))
    }

    /// The master key, wrapped by something else: that is all that a change of the passphrase is.
    ///
    /// # Errors
    /// As [`Master::create`].
    pub fn wrap(&self, unlock: &Unlock) -> Result<WrappedMaster> {
        let stretch = unlock.stretch()?;
        let master = wrap(&unlock.key(&stretch)?, &self.0, MASTER)?;
        Ok(WrappedMaster { version: VERSION, stretch, master })
    }

    /// Unlocks the master key. It takes a good part of a second by a passphrase.
    ///
    /// # Errors
    /// `Denied` when the passphrase or the key file is not the one.
    pub fn unlock(wrapped: &WrappedMaster, unlock: &Unlock) -> Result<Self> {
        if wrapped.version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the keys are wrapped in version {}: upgrade this router", wrapped.version),
            ));
        }
        let key = unlock.key(&wrapped.stretch)?;
        let wrong = || {
            denied(match unlock {
                Unlock::Passphrase(_) => "the passphrase is not the one that the keys are wrapped by",
                Unlock::KeyFile(_) => "the key file is not the one that the keys are wrapped by",
            })
        };
        unwrap_master(&key, wrapped).map(Self).ok_or_else(wrong)
    }

    /// A new key for a namespace.
    ///
    /// # Errors
    /// As [`Master::create`].
    pub fn new_key(&self, namespace: u32, number: u32) -> Result<(NamespaceKey, WrappedKey)> {
        let key: Secret = Zeroizing::new(random()?);
        let wrapped = wrap(&self.0, &key, &told(namespace, number))?;
        Ok((NamespaceKey { number, key }, WrappedKey { number, key: wrapped }))
    }

    /// The key of a namespace.
    ///
    /// # Errors
    /// `Corrupt` when the record is not this namespace's.
    pub fn key(&self, namespace: u32, wrapped: &WrappedKey) -> Result<NamespaceKey> {
        let what = told(namespace, wrapped.number);
        let key = unwrap(&self.0, &wrapped.key, &what).ok_or_else(|| {
            Error::corrupt(format!("the record of {what} can't be unwrapped: it was changed"))
        })?;
        Ok(NamespaceKey { number: wrapped.number, key })
    }
}

fn unwrap_master(key: &Secret, wrapped: &WrappedMaster) -> Option<Secret> {
    unwrap(key, &wrapped.master, MASTER)
}

/// A key of a namespace.
pub struct NamespaceKey {
    number: u32,
    key: Secret,
}

impl fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamespaceKey({}, ..)", self.number)
    }
}

impl NamespaceKey {
    /// Which of the namespace's keys.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The key that the frames of one object are sealed with.
    ///
    /// # Errors
    /// None that happens; `Internal` for what the library leaves open.
    pub fn object(&self, id: ObjectId) -> Result<ObjectKey> {
        let failed = |_| Error::internal("can't derive the key of an object");
        let prk =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"storagerouter alba object 1").extract(self.key.as_ref());
        let id = id.0.to_le_bytes();
        let info = [&id[..]];
        let derived = prk.expand(&info, &aead::CHACHA20_POLY1305).map_err(failed)?;
        Ok(ObjectKey(aead::LessSafeKey::new(aead::UnboundKey::from(derived))))
    }
}

/// The key that the frames of one object are sealed with, each under its own number.
pub struct ObjectKey(aead::LessSafeKey);

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectKey(..)")
    }
}

fn nonce(frame: u32) -> aead::Nonce {
    let frame = if common::mutant::is_on("alba-nonce-reuse") { 0 } else { frame };
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[..4].copy_from_slice(&frame.to_le_bytes());
    aead::Nonce::assume_unique_for_key(nonce)
}

impl ObjectKey {
    /// Seals `frame` where it lies; the tag comes back.
    pub(crate) fn seal(&self, number: u32, what: &[u8], frame: &mut [u8]) -> Result<[u8; 16]> {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), aead::Aad::from(what), frame)
            .map_err(|_| Error::internal("can't seal a frame"))?;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Opens `frame` where it lies; false when it is not what was sealed.
    pub(crate) fn open(&self, number: u32, what: &[u8], frame: &mut [u8], tag: [u8; 16]) -> bool {
        let tag = aead::Tag::from(tag);
        self.0.open_in_place_separate_tag(nonce(number), aead::Aad::from(what), tag, frame, 0..).is_ok()
    }
}

#[cfg(test)]
mod tests;
