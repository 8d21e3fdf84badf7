//! `doctor`: looks at this machine before the router does, and says what to do.

mod checks;

use crate::config::Settings;
use crate::failure::{Exit, Failure};
use anyhow::Result;
use common::Clock;
use std::fmt;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Ok,
    /// It runs; somebody should look.
    Warn,
    /// It will not run, or not safely.
    Fail,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it came out.
    pub level: Level,
    /// What was looked at.
    pub what: &'static str,
    /// What was found, and what to do.
    pub text: String,
}

impl Finding {
    fn ok(what: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, text: text.into() }
    }

    fn warn(what: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Warn, what, text: text.into() }
    }

    fn fail(what: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Fail, what, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "OK",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        write!(f, "{level:4}  {:13}  {}", self.what, self.text)
    }
}

/// Looks at everything and prints it. An error when one thing is bad.
pub async fn run(settings: &Settings, insecure: bool, clock: &dyn Clock) -> Result<()> {
    let findings = look(settings, insecure, clock).await?;
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    crate::client::print(&lines)?;
    match findings.iter().filter(|f| f.level == Level::Fail).count() {
        0 => Ok(()),
        1 => Err(Failure::error(Exit::Failure, "1 check failed")),
        n => Err(Failure::error(Exit::Failure, format!("{n} checks failed"))),
    }
}

async fn look(settings: &Settings, insecure: bool, clock: &dyn Clock) -> Result<Vec<Finding>> {
    let data_dir = settings.data_dir()?;
    let mut findings = vec![
        checks::configuration(settings, insecure),
        checks::cores(settings),
        checks::memory(settings),
        checks::open_files(),
        checks::time(clock),
    ];
    findings.extend(checks::data_dir(settings, &data_dir, clock).await);
    findings.extend(checks::ports(settings, &data_dir));
    findings.extend(checks::key_files(settings));
    findings.push(checks::fuse());
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::clock::SystemClock;

    #[tokio::test]
    async fn a_sane_machine_has_no_failure_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/data");
        let mut settings = Settings { data_dir: Some(path.clone()), ..Settings::default() };
        settings.nbd.listen = "127.0.0.1:0".to_string();
        settings.edge.listen = "127.0.0.1:0".to_string();
        settings.api.listen = "127.0.0.1:0".to_string();
        settings.cluster.listen = "127.0.0.1:0".to_string();
        settings.dtl.listen = "127.0.0.1:0".to_string();
        settings.volumedriver.journal_mib = 64;
        settings.volumedriver.segment_mib = 4;
        let findings = look(&settings, false, &SystemClock::new()).await.unwrap();
        let bad: Vec<_> = findings.iter().filter(|f| f.level == Level::Fail).collect();
        assert!(bad.is_empty(), "{bad:?}");
        assert!(!path.exists(), "doctor only looks");
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn what_would_fail_at_start_is_a_failure_here() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), r#"{"format":99}"#).unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut settings = Settings { data_dir: Some(dir.path().into()), ..Settings::default() };
        settings.nbd.listen = taken.local_addr().unwrap().to_string();
        settings.edge.listen = taken.local_addr().unwrap().to_string();
        settings.api.listen = "0.0.0.0:0".to_string();
        settings.volumedriver.journal_mib = 1 << 40;
        let findings = look(&settings, false, &SystemClock::new()).await.unwrap();
        let says = |key: &str| findings.iter().any(|f| f.level == Level::Fail && f.text.starts_with(key));
        assert!(says("nbd.listen") && says("edge.listen"), "{findings:?}");
        let failed: Vec<&str> = findings.iter().filter(|f| f.level == Level::Fail).map(|f| f.what).collect();
        for what in ["configuration", "data dir", "disk space", "port"] {
            assert!(failed.contains(&what), "'{what}' is not in {failed:?}");
        }
    }
}
