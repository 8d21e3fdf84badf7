//! How far something long has come: a line on stderr, if that is a terminal.

use crate::size::human;
use std::io::{IsTerminal, Write};

/// The line.
pub struct Progress {
    shown: bool,
    percent: Option<u64>,
}

impl Progress {
    /// Nothing is shown before the first step.
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), percent: None }
    }

    /// Whether anybody sees it.
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// `done` bytes of `size` are done.
    pub fn at(&mut self, done: u64, size: u64) {
        let percent = (u128::from(done) * 100).checked_div(u128::from(size)).unwrap_or(100).min(100) as u64;
        if self.shown && self.percent != Some(percent) {
            self.percent = Some(percent);
            say(&format!("\r{percent:>3} % of {}", human(size)));
        }
    }

    /// Leaves the line.
    pub fn end(&mut self) {
        if self.percent.take().is_some() {
            say("\n");
        }
    }
}

/// Not eprint: that panics when nobody reads any more.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
