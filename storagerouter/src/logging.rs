//! Logs: to stderr, with a filter that can be changed while the process runs.

use crate::config::{LogFormat, LogSettings};
use std::sync::Arc;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// The handle to the running filter.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<parking_lot::Mutex<String>>,
}

/// Reads filter directives; the error names them.
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    if text.trim().is_empty() {
        return Err("the log filter is empty: use 'info', or 'off' to log nothing".to_string());
    }
    // A bare word that is no level would be taken for a target, and silence everything.
    for directive in text.split(',').map(str::trim) {
        let bare = !directive.contains(['=', '[', ':']);
        let levels = ["trace", "debug", "info", "warn", "error", "off"];
        if bare && !levels.iter().any(|level| directive.eq_ignore_ascii_case(level)) {
            return Err(format!(
                "log filter '{text}': '{directive}' is not a level (trace, debug, info, warn, error, off); \
                 for one part of the program write '{directive}=debug'"
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|e| format!("log filter '{text}': {e}"))
}

/// Starts logging for this process.
pub fn start(settings: &LogSettings) -> anyhow::Result<LogControl> {
    let filter = parse_filter(&settings.filter).map_err(crate::failure::Failure::usage)?;
    let (filter, handle) = reload::Layer::new(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match settings.format {
        LogFormat::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // The filter is the inner layer: it decides for all.
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    Ok(LogControl { handle, current: Arc::new(parking_lot::Mutex::new(settings.filter.clone())) })
}

impl LogControl {
    /// The directives that hold now.
    pub fn filter(&self) -> String {
        self.current.lock().clone()
    }

    /// Changes the directives.
    pub fn set_filter(&self, text: &str) -> Result<(), String> {
        let filter = parse_filter(text)?;
        let mut current = self.current.lock();
        self.handle.reload(filter).map_err(|e| format!("the log filter could not be changed: {e}"))?;
        *current = text.to_string();
        Ok(())
    }
}

/// From now on a panic is logged and ends the process. Nothing acknowledged is lost by that, and
/// a task that died half-way is worse than a restart.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let place = info.location().map(|l| l.to_string()).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("a panic without a text");
        let trace = std::backtrace::Backtrace::force_capture();
        tracing::error!(
            thread = thread.name().unwrap_or("?"),
            place,
            backtrace = %trace,
            "internal error, the storage router stops at once (nothing acknowledged is lost): {text}"
        );
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::parse_filter;

    #[test]
    fn directives_are_checked_and_the_wrong_one_is_named() {
        for good in ["info", "INFO", "info,volumedriver=debug", "off", "volumedriver::log=trace,warn"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for (bad, named) in [("", "empty"), ("inof", "inof"), ("info,volumedriver=loud", "volumedriver=loud")]
        {
            let error = parse_filter(bad).expect_err(bad);
            assert!(error.contains(named), "{error}");
        }
    }
}
