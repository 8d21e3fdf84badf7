//! The words of the NBD protocol: constants, and decoders of what a client sends. Everything here
//! is a pure function of bytes, bounded, and does not panic on any input.

/// First half of the greeting.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second half of the greeting, and first word of each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First word of a chunk with an extended header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag, both directions: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag, both directions: the 124 zeroes after `NBD_OPT_EXPORT_NAME` are left out.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Longest export name, description or message, in bytes.
pub const MAX_STRING: usize = 4096;
/// Largest payload of an option that is looked at or skipped; a larger one ends the connection.
pub const MAX_OPTION: u32 = 64 << 10;
/// Most queries in one option about metadata contexts.
const MAX_QUERIES: u32 = 1024;

/// Bytes of an option's header.
pub const OPTION_HEADER: usize = 16;
/// Bytes of a request's header.
pub const REQUEST_HEADER: usize = 28;
/// Bytes of an extended request's header.
pub const EXTENDED_REQUEST_HEADER: usize = 32;

/// Options of the handshake.
pub mod opt {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod rep {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Types of information about an export.
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod tx {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub mod flag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
    /// Stands for any bit without a meaning.
    pub const UNKNOWN: u16 = 1 << 15;
}

/// Types of chunks of a structured reply.
pub mod chunk {
    #![allow(missing_docs)]
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Error values that the server itself gives (those of a device come from `common::ErrorKind`).
pub mod errno {
    #![allow(missing_docs)]
    pub const EPERM: u32 = 1;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Bytes of the disk.
    Read,
    /// New bytes.
    Write,
    /// The end of the connection.
    Disconnect,
    /// Durability of what completed.
    Flush,
    /// A hole.
    Trim,
    /// A read that nobody waits for.
    Cache,
    /// Zeroes.
    WriteZeroes,
    /// Which parts are holes.
    BlockStatus,
    /// A number that the server does not know.
    Unknown,
}

impl Command {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Command; 9] = [
        Command::Read,
        Command::Write,
        Command::Disconnect,
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
        Command::Unknown,
    ];

    fn of(number: u16) -> Self {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            _ => Command::Unknown,
        }
    }

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Command::Read => "read",
            Command::Write => "write",
            Command::Disconnect => "disconnect",
            Command::Flush => "flush",
            Command::Trim => "trim",
            Command::Cache => "cache",
            Command::WriteZeroes => "write_zeroes",
            Command::BlockStatus => "block_status",
            Command::Unknown => "unknown",
        }
    }
}

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags of `flag`.
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// Comes back in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; or the length of the payload.
    pub length: u64,
}

impl Request {
    /// Bytes that follow the header.
    pub fn payload(&self) -> u64 {
        let carries = self.command == Command::Write || self.flags & flag::PAYLOAD_LEN != 0;
        if carries { self.length } else { 0 }
    }
}

/// An option's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of `opt`, or something unknown.
    pub option: u32,
    /// Bytes that follow.
    pub length: u32,
}

/// What a client sent is not NBD, or not allowed in NBD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads big-endian numbers and strings off a slice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed("it is too short"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()? as usize;
        if length > MAX_STRING {
            return Err(Malformed("a string in it is longer than 4096 bytes"));
        }
        if length > self.0.len() {
            return Err(Malformed("a string in it is cut off"));
        }
        let (head, tail) = self.0.split_at(length);
        self.0 = tail;
        std::str::from_utf8(head).map_err(|_| Malformed("a string in it is not UTF-8"))
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("bytes are left over at its end")) }
    }
}

/// Decodes an option's header from its first [`OPTION_HEADER`] bytes.
pub fn decode_option_header(bytes: &[u8; OPTION_HEADER]) -> Result<OptionHeader, Malformed> {
    let mut c = Cursor(bytes);
    if c.u64()? != OPTION_MAGIC {
        return Err(Malformed("an option does not start with IHAVEOPT"));
    }
    Ok(OptionHeader { option: c.u32()?, length: c.u32()? })
}

/// The payload of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export; empty: the default one.
    pub name: &'a str,
    /// The client wants the export's name back.
    pub wants_name: bool,
    /// The client wants the export's description.
    pub wants_description: bool,
}

/// Decodes the payload of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub fn decode_info(payload: &[u8]) -> Result<InfoRequest<'_>, Malformed> {
    let mut c = Cursor(payload);
    let mut request = InfoRequest { name: c.string()?, wants_name: false, wants_description: false };
    for _ in 0..c.u16()? {
        match c.u16()? {
            info::NAME => request.wants_name = true,
            info::DESCRIPTION => request.wants_description = true,
            _ => {}
        }
    }
    c.end()?;
    Ok(request)
}

/// The payload of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// The export the queries are about.
    pub name: &'a str,
    /// What is asked for; empty in a list: everything.
    pub queries: Vec<&'a str>,
}

/// Decodes the payload of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub fn decode_meta(payload: &[u8]) -> Result<MetaRequest<'_>, Malformed> {
    let mut c = Cursor(payload);
    let name = c.string()?;
    let count = c.u32()?;
    if count > MAX_QUERIES {
        return Err(Malformed("it has more than 1024 queries"));
    }
    let queries = (0..count).map(|_| c.string()).collect::<Result<Vec<_>, _>>()?;
    c.end()?;
    Ok(MetaRequest { name, queries })
}

/// Decodes the payload of `NBD_OPT_EXPORT_NAME`, a bare name.
pub fn decode_name(payload: &[u8]) -> Result<&str, Malformed> {
    if payload.len() > MAX_STRING {
        return Err(Malformed("the export name is longer than 4096 bytes"));
    }
    std::str::from_utf8(payload).map_err(|_| Malformed("the export name is not UTF-8"))
}

/// Decodes the header of a request at the start of `bytes`: it and its length, or nothing when
/// there are too few bytes.
pub fn decode_request(bytes: &[u8], extended: bool) -> Result<Option<(Request, usize)>, Malformed> {
    let (magic, size) = if extended {
        (EXTENDED_REQUEST_MAGIC, EXTENDED_REQUEST_HEADER)
    } else {
        (REQUEST_MAGIC, REQUEST_HEADER)
    };
    let mut c = Cursor(bytes);
    if bytes.len() >= 4 && c.u32()? != magic {
        return Err(Malformed("a request does not start with the request magic"));
    }
    if bytes.len() < size {
        return Ok(None);
    }
    let mut flags = c.u16()?;
    let command = Command::of(c.u16()?);
    if !extended {
        // Without extended headers the bit is unknown; it must not make a payload appear.
        if flags & flag::PAYLOAD_LEN != 0 {
            flags = flags & !flag::PAYLOAD_LEN | flag::UNKNOWN;
        }
    }
    let cookie = c.u64()?;
    let offset = c.u64()?;
    let length = if extended { c.u64()? } else { u64::from(c.u32()?) };
    Ok(Some((Request { flags, command, cookie, offset, length }, size)))
}

#[cfg(test)]
mod tests;
