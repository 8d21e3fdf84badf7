//! One error type for everything that crosses a door, and the one table that maps its kind to
//! what a client of each protocol sees.

use std::fmt;

/// What went wrong, named by what the caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The thing may come back by itself: retry, later.
    Unavailable,
    /// Somebody else owns the object: look the owner up and ask there.
    NotOwner,
    /// A newer epoch took over: stop for good, do not retry.
    Fenced,
    /// There is no such thing: check the name.
    NotFound,
    /// It exists already, or changed meanwhile: read again and decide.
    Conflict,
    /// The request can't be right: fix it.
    Invalid,
    /// Out of space or quota: free some, then it goes on.
    NoSpace,
    /// A checksum or an invariant of stored data does not hold: inspect, restore from a copy.
    Corrupt,
    /// Not offered here: use another way.
    Unsupported,
    /// The caller may not do this: other credentials, or `--force`.
    Denied,
    /// A fault of ours or of the machine: look in the log.
    Internal,
}

/// Kinds as numbers, in answers that are stored and sent: the place in this table. A new one is added at its end.
const NUMBERS: [ErrorKind; 11] = [
    ErrorKind::Unavailable,
    ErrorKind::NotOwner,
    ErrorKind::Fenced,
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::Invalid,
    ErrorKind::NoSpace,
    ErrorKind::Corrupt,
    ErrorKind::Unsupported,
    ErrorKind::Denied,
    ErrorKind::Internal,
];

impl ErrorKind {
    /// The number of the kind in the project's own protocols and stored answers.
    pub fn number(self) -> u8 {
        NUMBERS.iter().position(|k| *k == self).unwrap_or(NUMBERS.len() - 1) as u8
    }

    /// The kind of that number; `None`: a newer version's.
    pub fn from_number(number: u8) -> Option<ErrorKind> {
        NUMBERS.get(usize::from(number)).copied()
    }

    /// The errno of an NBD reply (the values of the NBD protocol's section "Error values").
    pub fn nbd_errno(self) -> u32 {
        const EPERM: u32 = 1;
        const EIO: u32 = 5;
        const EINVAL: u32 = 22;
        const ENOSPC: u32 = 28;
        const ENOTSUP: u32 = 95;
        const ESHUTDOWN: u32 = 108;
        match self {
            ErrorKind::Invalid => EINVAL,
            ErrorKind::NoSpace => ENOSPC,
            ErrorKind::Unsupported => ENOTSUP,
            ErrorKind::Denied => EPERM,
            ErrorKind::NotOwner | ErrorKind::Fenced => ESHUTDOWN,
            ErrorKind::Unavailable
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Corrupt
            | ErrorKind::Internal => EIO,
        }
    }

    /// The status of a REST reply.
    pub fn http_status(self) -> u16 {
        match self {
            ErrorKind::Unavailable => 503,
            ErrorKind::NotOwner => 421,
            ErrorKind::Fenced | ErrorKind::Conflict => 409,
            ErrorKind::NotFound => 404,
            ErrorKind::Invalid => 400,
            ErrorKind::NoSpace => 507,
            ErrorKind::Unsupported => 501,
            ErrorKind::Denied => 403,
            ErrorKind::Corrupt | ErrorKind::Internal => 500,
        }
    }

    /// The stable name of the kind in the REST API and in logs.
    pub fn code(self) -> &'static str {
        match self {
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::NotOwner => "not_owner",
            ErrorKind::Fenced => "fenced",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Conflict => "conflict",
            ErrorKind::Invalid => "invalid",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Denied => "denied",
            ErrorKind::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without anyone doing anything.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Unavailable | ErrorKind::NoSpace)
    }
}

/// An error that crossed a door: its kind decides what happens next, its message names the culprit.
#[derive(Debug, Clone)]
pub struct Error {
    /// What the caller does about it.
    pub kind: ErrorKind,
    message: String,
}

/// The result of everything that crosses a door.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::Conflict`].
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// [`ErrorKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// [`ErrorKind::Fenced`].
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fenced, message)
    }

    /// The same error, told with what was being done.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// An I/O error of the local machine, told with what was being done.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let kind = match error.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::AlreadyExists => ErrorKind::Conflict,
            K::PermissionDenied => ErrorKind::Denied,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            K::InvalidInput => ErrorKind::Invalid,
            K::TimedOut | K::Interrupted | K::WouldBlock | K::ConnectionRefused | K::ConnectionReset => {
                ErrorKind::Unavailable
            }
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{what}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds "what was being done" to the error of a result.
pub trait Context<T> {
    /// The result, its error told with `what`.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.context(what))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::io(what, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_number_of_its_own_that_never_changes() {
        let kinds: Vec<ErrorKind> = (0..=u8::MAX).map_while(ErrorKind::from_number).collect();
        let codes: Vec<&str> = kinds.iter().map(|k| k.code()).collect();
        let expected = "unavailable not_owner fenced not_found conflict invalid no_space corrupt unsupported denied internal";
        assert_eq!(codes.join(" "), expected);
        assert!(kinds.iter().enumerate().all(|(n, k)| usize::from(k.number()) == n));
    }
}
