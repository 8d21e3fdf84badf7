//! What raft says, told to `tracing`.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        // Elections are news for whoever looks for them, and nothing to wake anybody for.
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "kvstore::raft", "{}", record.msg()),
            Level::Warning => tracing::warn!(target: "kvstore::raft", "{}", record.msg()),
            Level::Info => tracing::debug!(target: "kvstore::raft", "{}", record.msg()),
            Level::Debug | Level::Trace => tracing::trace!(target: "kvstore::raft", "{}", record.msg()),
        }
        Ok(())
    }
}

pub(super) fn logger() -> Logger {
    Logger::root(ToTracing, o!())
}
