//! Options, opening, closing.

use crate::SrEdgeDevice;
use crate::border::{code, code_of_open, device, guard, int, text};
use crate::runtime::Shared;
use common::clock::SystemClock;
use common::{BlockDevice, Error, Result};
use edge_client::transport::{Dialer, client_tls};
use edge_client::wire::Mode;
use edge_client::{Device, Options};
use std::ffi::{c_char, c_int};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// `sr_edge_options`.
#[repr(C)]
pub struct SrEdgeOptions {
    struct_size: usize,
    client: *const c_char,
    mode: c_int,
    deadline_ms: u32,
    open_ms: u32,
    timeout_ms: u32,
    keep_bytes: u64,
    tls_ca: *const c_char,
    tls_cert: *const c_char,
    tls_key: *const c_char,
    resume: *const u8,
}

/// `sr_edge_counters`.
#[repr(C)]
pub struct SrEdgeCounters {
    reconnects: u64,
    replayed: u64,
    moved: u64,
    own_flushes: u64,
    kept_bytes: u64,
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// The defaults.
///
/// # Safety
/// `options` is null or points to room for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_options_init(options: *mut SrEdgeOptions) {
    if options.is_null() {
        return;
    }
    let default = Options::default();
    let filled = SrEdgeOptions {
        struct_size: size_of::<SrEdgeOptions>(),
        client: std::ptr::null(),
        mode: 0,
        deadline_ms: milliseconds(default.deadline),
        open_ms: milliseconds(default.open),
        timeout_ms: milliseconds(default.timeout),
        keep_bytes: default.keep as u64,
        tls_ca: std::ptr::null(),
        tls_cert: std::ptr::null(),
        tls_key: std::ptr::null(),
        resume: std::ptr::null(),
    };
    // SAFETY: it is not null, and the caller promises room; nothing that is there is dropped.
    unsafe { options.write(filled) };
}

/// What C's options say.
///
/// # Safety
/// They are null or filled in, and what they point to lives.
unsafe fn options(given: *const SrEdgeOptions) -> Result<(Options, Dialer)> {
    let mut options = Options::default();
    // SAFETY: the caller promises that it is null or filled in.
    let Some(given) = (unsafe { given.as_ref() }) else { return Ok((options, Dialer::default())) };
    if given.struct_size != size_of::<SrEdgeOptions>() {
        return Err(Error::invalid("the options were not filled in by sr_edge_options_init of this library"));
    }
    // SAFETY: the caller promises that each is null or a string.
    let (client, ca, cert, key) =
        unsafe { (text(given.client)?, text(given.tls_ca)?, text(given.tls_cert)?, text(given.tls_key)?) };
    if let Some(client) = client {
        options.client = client.to_owned();
    }
    options.mode = match given.mode {
        0 => Mode::Exclusive,
        1 => Mode::ReadOnly,
        2 => Mode::Shared,
        other => return Err(Error::invalid(format!("{other} is no mode"))),
    };
    options.deadline = Duration::from_millis(given.deadline_ms.into());
    options.open = Duration::from_millis(given.open_ms.into());
    options.timeout = Duration::from_millis(given.timeout_ms.max(1).into());
    options.heartbeat = options.heartbeat.min(options.timeout / 2);
    options.keep = usize::try_from(given.keep_bytes).unwrap_or(usize::MAX);
    if !given.resume.is_null() {
        // SAFETY: it is not null, so the caller promises 16 bytes; an array of bytes has no alignment.
        let resume = unsafe { given.resume.cast::<[u8; 16]>().read() };
        options.resume = Some(u128::from_be_bytes(resume));
    }
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((Path::new(cert), Path::new(key))),
        (None, None) => None,
        _ => return Err(Error::invalid("tls_cert and tls_key go together")),
    };
    let tls = match ca {
        Some(ca) => Some(client_tls(Path::new(ca), own)?),
        None if own.is_some() => return Err(Error::invalid("tls_cert needs tls_ca")),
        None => None,
    };
    Ok((options, Dialer { tls }))
}

/// Attaches a vDisk.
///
/// # Safety
/// `addresses` and `export_name` are null or strings, `options` is null or filled in, and `opened` is null or points to
/// room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_open(
    addresses: *const c_char,
    export_name: *const c_char,
    options: *const SrEdgeOptions,
    opened: *mut *mut SrEdgeDevice,
) -> c_int {
    int(guard(code_of_open, || {
        if opened.is_null() {
            return Err(Error::invalid("there is no place for the device"));
        }
        // SAFETY: as the caller promises.
        let (addresses, export) = unsafe { (text(addresses)?, text(export_name)?) };
        // SAFETY: as the caller promises.
        let (options, dialer) = unsafe { self::options(options)? };
        let (Some(addresses), Some(export)) = (addresses, export) else {
            return Err(Error::invalid("the addresses or the name of the export are NULL"));
        };
        let addresses: Vec<String> =
            addresses.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect();
        let runtime = Shared::get()?;
        let open = async {
            let clock = Arc::new(SystemClock::new());
            Device::open(addresses, export, options, Arc::new(dialer), clock).await
        };
        let device = Some(runtime.wait(open)??);
        let device = Box::into_raw(Box::new(SrEdgeDevice { device, runtime }));
        // SAFETY: it is not null, and the caller promises room.
        unsafe { opened.write(device) };
        Ok(0)
    }))
}

/// Gives up the attachment and frees the device.
///
/// # Safety
/// `device` is null, or came from `sr_edge_open`, was not closed, and nobody uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_close(device: *mut SrEdgeDevice) -> c_int {
    int(guard(code, || {
        if device.is_null() {
            return Ok(0);
        }
        // SAFETY: it is not null, so it came from `Box::into_raw` in `sr_edge_open`, and the caller gives it up.
        let mut closing = unsafe { Box::from_raw(device) };
        let Some(device) = closing.device.take() else { return Ok(0) };
        let closed = closing.runtime.wait(device.close());
        // Its task may still be told to end.
        let _inside = closing.runtime.handle().enter();
        drop(device);
        closed.map(|()| 0)
    }))
}

impl SrEdgeDevice {
    /// The device.
    ///
    /// # Errors
    /// `Invalid`: it is being closed.
    pub(crate) fn get(&self) -> Result<&Device> {
        self.device.as_ref().ok_or_else(|| Error::invalid("the device is closed"))
    }
}

/// Bytes of the device.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_size(of: *mut SrEdgeDevice) -> i64 {
    // SAFETY: as the caller promises.
    guard(code, || Ok(unsafe { device(of) }?.get()?.geometry().size as i64))
}

/// The unit of offsets and lengths.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_block_size(of: *mut SrEdgeDevice) -> c_int {
    // SAFETY: as the caller promises.
    int(guard(code, || Ok(i64::from(unsafe { device(of) }?.get()?.geometry().min_block))))
}

/// Whether writes are refused.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_is_read_only(of: *mut SrEdgeDevice) -> c_int {
    // SAFETY: as the caller promises.
    int(guard(code, || Ok(i64::from(unsafe { device(of) }?.get()?.geometry().read_only))))
}

/// Whether the DTL is in sync.
///
/// # Safety
/// `of` is null or an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_in_sync(of: *mut SrEdgeDevice) -> c_int {
    // SAFETY: as the caller promises.
    int(guard(code, || Ok(i64::from(unsafe { device(of) }?.get()?.in_sync()))))
}

/// The attachment's number.
///
/// # Safety
/// `of` is null or an open device, `attachment` null or room for 16 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_attachment(of: *mut SrEdgeDevice, attachment: *mut u8) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let number = unsafe { device(of) }?.get()?.attachment();
        if attachment.is_null() {
            return Err(Error::invalid("there is no place for the attachment"));
        }
        // SAFETY: it is not null, and the caller promises 16 bytes; an array of bytes has no alignment.
        unsafe { attachment.cast::<[u8; 16]>().write(number.to_be_bytes()) };
        Ok(0)
    }))
}

/// What happened so far.
///
/// # Safety
/// `of` is null or an open device, `counters` null or room for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_edge_get_counters(of: *mut SrEdgeDevice, counters: *mut SrEdgeCounters) -> c_int {
    int(guard(code, || {
        // SAFETY: as the caller promises.
        let now = unsafe { device(of) }?.get()?.counters();
        if counters.is_null() {
            return Err(Error::invalid("there is no place for the counters"));
        }
        let filled = SrEdgeCounters {
            reconnects: now.reconnects,
            replayed: now.replayed,
            moved: now.moved,
            own_flushes: now.own_flushes,
            kept_bytes: now.kept_bytes,
        };
        // SAFETY: it is not null, and the caller promises room.
        unsafe { counters.write(filled) };
        Ok(0)
    }))
}
