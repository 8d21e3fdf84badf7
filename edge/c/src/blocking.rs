//! Functions that wait.

use crate::SrEdgeDevice;
use crate::border::{bytes, check, code, device, guard, int};
use bytes::Bytes;
use common::{BlockDevice, Result};
use std::ffi::{c_int, c_void};

/// Reads.
///
/// # Safety
/// `of` is null or an open device; `length` bytes at `buffer` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_pread(
    of: *mut SrEdgeDevice,
    buffer: *mut c_void,
    length: usize,
    offset: u64,
) -> i64 {
    guard(code, || {
        // SAFETY: as the caller promises.
        let of = unsafe { device(of) }?;
        check(buffer.cast(), length)?;
        let data = of.runtime.wait(of.get()?.read(offset, length as u32))??;
        // SAFETY: `check` found a buffer, the caller promises `length` bytes, and a read returns just as many.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.cast(), data.len().min(length)) };
        Ok(length as i64)
    })
}

/// Writes.
///
/// # Safety
/// `of` is null or an open device; `length` bytes at `buffer` may be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_pwrite(
    of: *mut SrEdgeDevice,
    buffer: *const c_void,
    length: usize,
    offset: u64,
    fua: c_int,
) -> i64 {
    guard(code, || {
        // SAFETY: as the caller promises.
        let (of, data) = unsafe { (device(of)?, bytes(buffer.cast(), length)?) };
        // A copy: it is kept beyond the call, for a new owner that lacks it.
        let data = Bytes::copy_from_slice(data);
        of.runtime.wait(of.get()?.write(offset, data, fua != 0))??;
        Ok(length as i64)
    })
}

fn done(result: Result<Result<()>>) -> Result<i64> {
    result?.map(|()| 0)
}

/// Zeroes a range.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_write_zeroes(
    of: *mut SrEdgeDevice,
    offset: u64,
    length: u64,
    hole: c_int,
) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let of = unsafe { device(of) }?;
        done(of.runtime.wait(of.get()?.write_zeroes(offset, length, hole != 0, false)))
    }))
}

/// Gives a range back.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_discard(of: *mut SrEdgeDevice, offset: u64, length: u64) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let of = unsafe { device(of) }?;
        done(of.runtime.wait(of.get()?.discard(offset, length, false)))
    }))
}

/// Flushes.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_flush(of: *mut SrEdgeDevice) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let of = unsafe { device(of) }?;
        done(of.runtime.wait(of.get()?.flush()))
    }))
}
