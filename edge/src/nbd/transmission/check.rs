//! What a request must look like to get to the device.

use super::{Connection, MAX_SERVED};
use crate::nbd::proto::{Command, Request, errno, flag};

impl Connection<'_> {
    /// Whether the request can be served at all; else what its reply says.
    pub(super) fn check(&mut self, r: &Request) -> Result<(), (u32, &'static str)> {
        let invalid = |message| Err((errno::EINVAL, message));
        let known = match r.command {
            Command::Read => flag::FUA | flag::DF,
            Command::Write => flag::FUA | flag::PAYLOAD_LEN,
            Command::WriteZeroes => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            Command::BlockStatus => flag::FUA | flag::REQ_ONE,
            Command::Flush | Command::Trim | Command::Cache | Command::Disconnect => flag::FUA,
            Command::Unknown => return invalid("unknown command"),
        };
        if r.flags & !known != 0 {
            return invalid("a flag of the request is not known for its command");
        }
        if r.flags & flag::DF != 0 && !self.structured {
            return invalid("the flag DF needs structured replies");
        }
        let changes = matches!(r.command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && self.geometry.read_only {
            return Err((errno::EPERM, "the export is read-only"));
        }
        match r.command {
            Command::Flush => return Ok(()),
            Command::BlockStatus if self.contexts.is_empty() => {
                return invalid("no metadata context was selected");
            }
            Command::BlockStatus if r.length == 0 => return invalid("a block status of nothing"),
            Command::Read | Command::Write if r.length > MAX_SERVED => {
                let errno = if r.flags & flag::DF != 0 { errno::EOVERFLOW } else { errno::EINVAL };
                return Err((errno, "the request is larger than what is ever served, 64 MiB"));
            }
            _ => {}
        }
        let end = r.offset.checked_add(r.length);
        if end.is_none_or(|end| end > self.geometry.size) {
            // The disk may have grown.
            self.geometry = self.device.geometry();
        }
        if end.is_none_or(|end| end > self.geometry.size) {
            return if matches!(r.command, Command::Write | Command::WriteZeroes) {
                Err((errno::ENOSPC, "the request reaches beyond the end of the export"))
            } else {
                invalid("the request reaches beyond the end of the export")
            };
        }
        let unit = self.unit();
        let aligned = r.offset.is_multiple_of(unit) && r.length.is_multiple_of(unit);
        // A read is widened: clients that never asked for the block size send odd ones.
        if !aligned && r.command != Command::Read {
            return invalid("offset and length must be multiples of the export's minimum block size");
        }
        Ok(())
    }
}
