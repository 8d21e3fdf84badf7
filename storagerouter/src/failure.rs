//! Exit codes, and the error that carries one from where it is known to `main`.

use common::{Error, ErrorKind};
use std::fmt;
use std::process::ExitCode;

/// How the process ends. The numbers are an interface: scripts read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Anything that has no number of its own.
    Failure = 1,
    /// The command line or the configuration can't be right.
    Usage = 2,
    /// There is no such vPool, vDisk, object or file.
    NotFound = 3,
    /// It exists already, is in use, or is held by another process.
    Conflict = 4,
    /// No storage router answers.
    Unreachable = 5,
}

/// The exit codes, as `--help` shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed (also: doctor or fsck found something bad)
  2  the command line or the configuration can't be right
  3  there is no such vPool, vDisk, object or file
  4  it exists already, is in use, or the data directory or an address is held by another process
  5  no storage router answers";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error whose exit code is known.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What went wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure that ends the process with `exit`.
    pub fn error(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Failure { exit, message: message.into() })
    }

    /// [`Exit::Usage`].
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self::error(Exit::Usage, message)
    }
}

/// The exit code of an error kind.
pub fn exit_of_kind(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::Conflict => Exit::Conflict,
        ErrorKind::Invalid => Exit::Usage,
        _ => Exit::Failure,
    }
}

/// The exit code of an error: the first cause that knows one decides.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.exit;
        }
        if let Some(error) = cause.downcast_ref::<Error>() {
            return exit_of_kind(error.kind);
        }
    }
    Exit::Failure
}
