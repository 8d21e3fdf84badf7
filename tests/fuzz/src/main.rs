//! All fuzz targets in one program: the environment's `SR_FUZZ_TARGET` says which one runs. Started by
//! `cargo xtask fuzz`; the arguments are libFuzzer's.
#![no_main]

mod settings;

use std::sync::OnceLock;

type Target = fn(&[u8]);

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let own = [("settings", settings::check as Target)];
        let decoders = [
            volumedriver::fuzzing::TARGETS,
            dtl::fuzzing::TARGETS,
            asd::fuzzing::TARGETS,
            edge::nbd::fuzz::TARGETS,
            edge_client::fuzz::TARGETS,
            edge::protocol::fuzz::TARGETS,
            objectrouter::fuzzing::TARGETS,
        ];
        let all: Vec<(&str, Target)> = decoders.concat().into_iter().chain(own).collect();
        let name = std::env::var("SR_FUZZ_TARGET").unwrap_or_default();
        match all.iter().find(|(target, _)| *target == name) {
            Some((_, target)) => *target,
            None => {
                let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
                eprintln!("SR_FUZZ_TARGET={name:?} is not one of: {}", names.join(" "));
                std::process::exit(2);
            }
        }
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| chosen()(data));
