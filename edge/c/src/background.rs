//! Functions that call back. A request is sent by the calling thread; only its answer comes from another.

use crate::SrEdgeDevice;
use crate::border::{bytes, check, code, device, guard, int, remember};
use bytes::Bytes;
use common::{BlockDevice, Error, Result};
use edge_client::wire::{Op, Outcome};
use std::ffi::{c_int, c_void};
use std::future::Future;

/// `sr_edge_callback`.
pub type SrEdgeCallback = Option<unsafe extern "C" fn(argument: *mut c_void, result: i64)>;

/// Whom to call, and with what.
struct Caller {
    callback: unsafe extern "C" fn(*mut c_void, i64),
    argument: *mut c_void,
}

// SAFETY: the pointer is only handed back to the callback, which the caller wrote to run on another thread.
unsafe impl Send for Caller {}

/// Where a read goes.
struct Target {
    buffer: *mut u8,
    length: usize,
}

// SAFETY: until the callback the buffer belongs to the request, which writes to it from one thread.
unsafe impl Send for Target {}

impl Target {
    /// Puts `data` at `from`, as far as there is room.
    fn fill(&self, from: usize, data: &[u8]) {
        let room = self.length.saturating_sub(from);
        // SAFETY: the caller promised `length` bytes until the callback; what is written ends there, and begins there at
        // the latest.
        unsafe {
            let at = self.buffer.add(from.min(self.length));
            std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len().min(room));
        }
    }
}

impl Caller {
    fn new(callback: SrEdgeCallback, argument: *mut c_void) -> Result<Caller> {
        let callback = callback.ok_or_else(|| Error::invalid("the callback is NULL"))?;
        Ok(Caller { callback, argument })
    }

    fn call(self, result: Result<i64>) {
        let value = result.unwrap_or_else(|error| {
            remember(&error);
            code(&error)
        });
        // SAFETY: the caller promised that it may be called with its argument, once, from any thread.
        unsafe { (self.callback)(self.argument, value) };
    }
}

fn begin(of: &SrEdgeDevice, caller: Caller, work: impl Future<Output = Result<i64>> + Send + 'static) {
    of.runtime.handle().spawn(async move {
        let result = work.await;
        caller.call(result);
    });
}

/// Cuts a request into parts that the router takes: where each begins, and its length.
fn parts(of: &SrEdgeDevice, length: usize) -> Result<impl Iterator<Item = (usize, usize)>> {
    let most = of.get()?.geometry().max_payload as usize;
    Ok((0..length.max(1)).step_by(most.max(1)).map(move |from| (from, most.min(length - from))))
}

/// Begins a read.
///
/// # Safety
/// `of` is null or a device that is open until the callback; `length` bytes at `buffer` may be written until then;
/// `callback` may be called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_aio_pread(
    of: *mut SrEdgeDevice,
    buffer: *mut c_void,
    length: usize,
    offset: u64,
    callback: SrEdgeCallback,
    argument: *mut c_void,
) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let of = unsafe { device(of) }?;
        let caller = Caller::new(callback, argument)?;
        check(buffer.cast(), length)?;
        let target = Target { buffer: buffer.cast(), length };
        let device = of.get()?;
        let sent: Vec<_> = parts(of, length)?
            .map(|(from, len)| {
                let offset = offset.saturating_add(from as u64);
                (from, len, device.submit(Op::Read { offset, len: len as u32 }))
            })
            .collect();
        begin(of, caller, async move {
            // Moved in whole: its pointer alone could not go to another thread.
            let target = target;
            for (from, len, part) in sent {
                match part.await? {
                    Outcome::Data(data) if data.len() == len => target.fill(from, &data),
                    _ => return Err(Error::internal("the router answered something else")),
                }
            }
            Ok(target.length as i64)
        });
        Ok(0)
    }))
}

/// Begins a write.
///
/// # Safety
/// `of` is null or a device that is open until the callback; `length` bytes at `buffer` may be read; `callback` may be
/// called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_aio_pwrite(
    of: *mut SrEdgeDevice,
    buffer: *const c_void,
    length: usize,
    offset: u64,
    fua: c_int,
    callback: SrEdgeCallback,
    argument: *mut c_void,
) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let (of, data) = unsafe { (device(of)?, bytes(buffer.cast(), length)?) };
        let caller = Caller::new(callback, argument)?;
        let data = Bytes::copy_from_slice(data);
        let device = of.get()?;
        let sent: Vec<_> = parts(of, length)?
            .map(|(from, len)| {
                let (offset, data) = (offset.saturating_add(from as u64), data.slice(from..from + len));
                device.submit(Op::Write { offset, data, fua: fua != 0 })
            })
            .collect();
        begin(of, caller, async move {
            for part in sent {
                part.await?;
            }
            Ok(length as i64)
        });
        Ok(0)
    }))
}

/// Begins what has no payload.
///
/// # Safety
/// As for [`sr_edge_aio_flush`].
unsafe fn simple(of: *mut SrEdgeDevice, op: Op, callback: SrEdgeCallback, argument: *mut c_void) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let of = unsafe { device(of) }?;
        let caller = Caller::new(callback, argument)?;
        let sent = of.get()?.submit(op);
        begin(of, caller, async move { sent.await.map(|_| 0) });
        Ok(0)
    }))
}

/// Begins to zero a range.
///
/// # Safety
/// `of` is null or a device that is open until the callback, which may be called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_aio_write_zeroes(
    of: *mut SrEdgeDevice,
    offset: u64,
    length: u64,
    hole: c_int,
    callback: SrEdgeCallback,
    argument: *mut c_void,
) -> c_int {
    let op = Op::Zeroes { offset, len: length, hole: hole != 0, fua: false };
    // SAFETY: as the caller promises.
    unsafe { simple(of, op, callback, argument) }
}

/// Begins to give a range back.
///
/// # Safety
/// `of` is null or a device that is open until the callback, which may be called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_aio_discard(
    of: *mut SrEdgeDevice,
    offset: u64,
    length: u64,
    callback: SrEdgeCallback,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { simple(of, Op::Discard { offset, len: length, fua: false }, callback, argument) }
}

/// Begins a flush.
///
/// # Safety
/// `of` is null or a device that is open until the callback, which may be called from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_aio_flush(
    of: *mut SrEdgeDevice,
    callback: SrEdgeCallback,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { simple(of, Op::Flush, callback, argument) }
}
