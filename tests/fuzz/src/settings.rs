//! The configuration file, and sizes as people write them. The product's program brings RocksDB with it, which
//! nobody wants to build for this: the sections are put together here as they are there.

use serde::{Deserialize, Serialize};

#[path = "../../../alba-proxy/src/key.rs"]
mod key;
// Its tests are no module of this crate: rustfmt would look for them.
#[rustfmt::skip]
#[path = "../../../storagerouter/src/size.rs"]
mod size;
#[path = "../../../storagerouter/src/config/suggest.rs"]
mod suggest;

#[derive(Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    nbd: edge::config::Settings,
    objectrouter: objectrouter::config::Settings,
    volumedriver: volumedriver::Settings,
}

/// What is read is written so that the same is read again.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match toml::from_str::<Settings>(text) {
        Ok(settings) => {
            // What does not fit TOML's numbers can't have come from it.
            let again = toml::to_string(&settings).expect("settings that were read are written");
            assert_eq!(toml::from_str::<Settings>(&again).as_ref(), Ok(&settings));
            let _ = settings.nbd.check(false);
            let _ = settings.objectrouter.check();
            let _ = settings.volumedriver.check();
        }
        Err(error) => {
            suggest::with_suggestion(&error);
        }
    }
    for line in text.lines() {
        if let Ok(bytes) = size::parse(line) {
            assert_eq!(size::parse(&bytes.to_string()), Ok(bytes));
            size::human(bytes);
        }
        if key::check_key(line).is_ok() {
            // A key never leaves the store's folder.
            let path = std::path::Path::new("/store").join(line);
            assert!(path.components().all(|part| part != std::path::Component::ParentDir));
            assert!(path.starts_with("/store"));
        }
        let _ = key::check_prefix(line);
    }
}
