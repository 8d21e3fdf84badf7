//! Seeded bugs: ways to be wrong that a test build can switch on, to see that the tests notice
//! (docs/mutations.md). Without the feature `mutants` each is a constant `false`, and a
//! `storagerouter` with the feature does not compile.

/// Whether this is a build with bugs in it.
pub const BUILT_IN: bool = cfg!(feature = "mutants");

/// Whether the bug of this name is switched on: by `SR_MUTANT` in the environment.
#[inline(always)]
pub fn is_on(name: &str) -> bool {
    BUILT_IN && chosen() == Some(name)
}

fn chosen() -> Option<&'static str> {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("SR_MUTANT").ok()).as_deref()
}
