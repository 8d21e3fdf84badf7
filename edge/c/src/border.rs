//! Pointers, panics and errors on their way out.

use crate::SrEdgeDevice;
use common::{Error, ErrorKind, Result};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

const EIO: i64 = 5;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Remembers the text of an error for this thread.
pub fn remember(error: &Error) {
    let text: Vec<u8> = error.to_string().into_bytes().into_iter().filter(|byte| *byte != 0).collect();
    // Without a zero in it this can't fail.
    LAST.with(|last| *last.borrow_mut() = CString::new(text).unwrap_or_default());
}

/// What a failed request returns.
pub fn code(error: &Error) -> i64 {
    -i64::from(error.kind.nbd_errno())
}

/// What a failed opening returns.
pub fn code_of_open(error: &Error) -> i64 {
    const ENOENT: i64 = 2;
    const EBUSY: i64 = 16;
    const ETIMEDOUT: i64 = 110;
    match error.kind {
        ErrorKind::NotFound => -ENOENT,
        ErrorKind::Conflict => -EBUSY,
        ErrorKind::Unavailable => -ETIMEDOUT,
        _ => code(error),
    }
}

/// Runs `f`: its value, or the code of its error, whose text is remembered. A panic does not get out.
pub fn guard(code: fn(&Error) -> i64, f: impl FnOnce() -> Result<i64>) -> i64 {
    let result = catch_unwind(AssertUnwindSafe(f));
    let result = result.unwrap_or_else(|_| Err(Error::internal("a fault in the library: please report it")));
    result.unwrap_or_else(|error| {
        remember(&error);
        code(&error)
    })
}

/// A result for functions that return an `int`.
pub fn int(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(-(EIO as i32))
}

/// The device behind a pointer.
///
/// # Errors
/// The pointer is null.
///
/// # Safety
/// It is null, or came from `sr_edge_open` and was not closed, and is not while the reference lives.
pub unsafe fn device<'d>(device: *const SrEdgeDevice) -> Result<&'d SrEdgeDevice> {
    // SAFETY: the caller promises that it is null or points to a live device.
    unsafe { device.as_ref() }.ok_or_else(|| Error::invalid("the device is NULL"))
}

/// The text behind a pointer; `None` for null.
///
/// # Errors
/// It is not UTF-8.
///
/// # Safety
/// It is null, or points to a string that ends with a zero.
pub unsafe fn text<'t>(text: *const c_char) -> Result<Option<&'t str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: it is not null, so the caller promises a string that ends with a zero.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Error::invalid("a text is not UTF-8"))
}

/// Bytes that a caller hands in.
///
/// # Errors
/// The pointer is null, or the length is no length.
///
/// # Safety
/// `length` bytes at `bytes` may be read while the slice lives.
pub unsafe fn bytes<'b>(bytes: *const u8, length: usize) -> Result<&'b [u8]> {
    check(bytes, length)?;
    // SAFETY: it is neither null nor too long, and the caller promises that the bytes may be read.
    Ok(unsafe { std::slice::from_raw_parts(bytes, length) })
}

/// Checks a buffer's pointer and length.
///
/// # Errors
/// The pointer is null, or the length is no length.
pub fn check(buffer: *const u8, length: usize) -> Result<()> {
    if buffer.is_null() {
        return Err(Error::invalid("the buffer is NULL"));
    }
    if isize::try_from(length).is_err() || u32::try_from(length).is_err() {
        return Err(Error::invalid("a request of 4 GiB or more"));
    }
    Ok(())
}

/// The text of the calling thread's newest error.
#[unsafe(no_mangle)]
pub extern "C" fn sr_edge_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}
