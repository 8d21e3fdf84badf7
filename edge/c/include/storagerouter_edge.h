/*
 * The client of storagerouter's edge protocol, for C.
 *
 * A device is a vDisk (or a snapshot) of a storage router, attached through any router of its vPool. While routers die
 * and volumes move, callers wait; requests fail when their deadline has passed. Writes that were acknowledged and not
 * flushed are kept, and done again by a new owner that lacks them.
 *
 * All functions may be called from any thread, at the same time; a device is closed once, when nobody uses it. Blocking
 * functions and sr_edge_close must not be called from a completion callback. After fork() only the parent may go on using
 * devices.
 *
 * Functions that return an int or an int64_t return a negative errno value when they fail:
 *   -EIO        the request failed; of a flush also: what was acknowledged before may be gone. Open the device anew.
 *   -EINVAL     an argument can't be right: a range that is not in whole blocks or beyond the end, a null pointer
 *   -ENOSPC     a change beyond the end, or the router has no space
 *   -EPERM      the device is read-only
 *   -ESHUTDOWN  the attachment was revoked: somebody else may be attached
 *   -EBUSY      (open) somebody else is attached; the text says who
 *   -ENOENT     (open) there is no such vDisk
 *   -ETIMEDOUT  (open) no router answered in time
 * sr_edge_last_error says more.
 */
#ifndef STORAGEROUTER_EDGE_H
#define STORAGEROUTER_EDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* An attached vDisk. */
typedef struct sr_edge_device sr_edge_device;

/* Nobody else may be attached. */
#define SR_EDGE_EXCLUSIVE 0
/* Others may be attached that only read or that share; writes are refused. */
#define SR_EDGE_READ_ONLY 1
/* Others may be attached that share: they keep order among themselves. */
#define SR_EDGE_SHARED 2

/* How a device is attached. Fill it in with sr_edge_options_init, then change what should differ. */
typedef struct sr_edge_options {
    /* sizeof(sr_edge_options), as sr_edge_options_init set it. */
    size_t struct_size;
    /* Who asks, as people call it: told to others that are refused. NULL: the process's number. */
    const char *client;
    /* SR_EDGE_EXCLUSIVE, SR_EDGE_READ_ONLY or SR_EDGE_SHARED. */
    int mode;
    /* Milliseconds after which a request fails, all attempts together; 0: never. */
    uint32_t deadline_ms;
    /* Milliseconds after which opening fails. */
    uint32_t open_ms;
    /* Milliseconds after which a silent router is left. */
    uint32_t timeout_ms;
    /* Bytes of acknowledged writes that are kept until a flush covers them. */
    uint64_t keep_bytes;
    /* PEM file with the authorities of the routers' certificates. Set: TCP addresses are spoken to in TLS. */
    const char *tls_ca;
    /* PEM files with this client's certificate chain and key, if the routers ask for one. */
    const char *tls_cert;
    const char *tls_key;
    /* 16 bytes, from sr_edge_attachment of a process before this one: its attachment is taken over. NULL: none. */
    const uint8_t *resume;
} sr_edge_options;

/* What happened to a device so far. */
typedef struct sr_edge_counters {
    /* Attachments after the first one. */
    uint64_t reconnects;
    /* Requests that were sent again. */
    uint64_t replayed;
    /* Times that a router named another owner. */
    uint64_t moved;
    /* Flushes that the client did by itself, to keep less. */
    uint64_t own_flushes;
    /* Bytes that are kept for a replay now. */
    uint64_t kept_bytes;
} sr_edge_counters;

/* The defaults. */
void sr_edge_options_init(sr_edge_options *options);

/*
 * Attaches `export_name` ("vpool/vdisk" or "vpool/vdisk@snapshot") through any of the routers at `addresses`: HOST:PORT
 * or unix:PATH, several separated by commas. `options` may be NULL. Returns 0 and sets *device.
 */
int sr_edge_open(const char *addresses, const char *export_name, const sr_edge_options *options,
                 sr_edge_device **device);

/* Gives up the attachment and frees the device. Flushing before is the caller's business. NULL is fine. */
int sr_edge_close(sr_edge_device *device);

/* Bytes of the device; they may grow while it is open. */
int64_t sr_edge_size(sr_edge_device *device);

/* Offsets and lengths are multiples of so many bytes. */
int sr_edge_block_size(sr_edge_device *device);

/* 1: writes are refused. */
int sr_edge_is_read_only(sr_edge_device *device);

/* 1: the DTL of the volume is in sync, said the newest reply; 0: it is not, or no router is reached. */
int sr_edge_in_sync(sr_edge_device *device);

/* The attachment's 16 bytes, for sr_edge_options.resume. */
int sr_edge_attachment(sr_edge_device *device, uint8_t *attachment);

/* What happened so far. */
int sr_edge_get_counters(sr_edge_device *device, sr_edge_counters *counters);

/* Reads `length` bytes at `offset`; returns `length`. */
int64_t sr_edge_pread(sr_edge_device *device, void *buffer, size_t length, uint64_t offset);

/* Writes `length` bytes at `offset`; durable when it returns if `fua` is not 0. Returns `length`. */
int64_t sr_edge_pwrite(sr_edge_device *device, const void *buffer, size_t length, uint64_t offset, int fua);

/* Makes the range read as zeroes, and a hole if `hole` is not 0. Returns 0. */
int sr_edge_write_zeroes(sr_edge_device *device, uint64_t offset, uint64_t length, int hole);

/* Gives the range back: it reads as zeroes. Returns 0. */
int sr_edge_discard(sr_edge_device *device, uint64_t offset, uint64_t length);

/* Whatever returned before is durable when it returns 0. */
int sr_edge_flush(sr_edge_device *device);

/*
 * Called once for each request that was begun, from a thread of the library: what the blocking function would have
 * returned. It must not block.
 */
typedef void (*sr_edge_callback)(void *argument, int64_t result);

/*
 * The same, in the background: 0 when the request was begun, and `callback` is called, maybe before this returns. `buffer`
 * of a read must live until then; that of a write is copied. Requests of one thread are sent in the order of the calls, and
 * may take effect in any.
 */
int sr_edge_aio_pread(sr_edge_device *device, void *buffer, size_t length, uint64_t offset,
                      sr_edge_callback callback, void *argument);
int sr_edge_aio_pwrite(sr_edge_device *device, const void *buffer, size_t length, uint64_t offset, int fua,
                       sr_edge_callback callback, void *argument);
int sr_edge_aio_write_zeroes(sr_edge_device *device, uint64_t offset, uint64_t length, int hole,
                             sr_edge_callback callback, void *argument);
int sr_edge_aio_discard(sr_edge_device *device, uint64_t offset, uint64_t length, sr_edge_callback callback,
                        void *argument);
int sr_edge_aio_flush(sr_edge_device *device, sr_edge_callback callback, void *argument);

/*
 * The text of the calling thread's newest error; in a callback, that of its request. Valid until the thread's next call.
 * Never NULL.
 */
const char *sr_edge_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
