#!/usr/bin/python3
"""nbd_commands.py URI [reference]: every NBD command and flag through libnbd, on a fresh export of at least 64 MiB.
With `reference`, what only our server promises is not asked for."""
import errno
import sys

import nbd

MIB = 1 << 20
uri = sys.argv[1]
ours = "reference" not in sys.argv[2:]


def connect():
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


def refused(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, "errno %s, expected %s" % (error.errno, errno.errorcode[number])
        return
    raise AssertionError("should have failed with " + errno.errorcode[number])


def extents(h, length, offset, flags=0):
    found = []

    def add(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        found.extend(zip(entries[0::2], entries[1::2]))

    h.block_status(length, offset, add, flags)
    return found


def state_at(h, offset):
    return extents(h, 4096, offset, nbd.CMD_FLAG_REQ_ONE)[0][1]


h = connect()
size = h.get_size()
assert size >= 64 * MIB
assert h.get_protocol() == "newstyle-fixed"
assert h.get_structured_replies_negotiated()
for can in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "df", "multi_conn"):
    assert getattr(h, "can_" + can)(), "does not advertise " + can
assert not h.is_read_only()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
if ours:
    smallest, preferred = h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_PREFERRED)
    largest = h.get_block_size(nbd.SIZE_MAXIMUM)
    assert smallest in (1, 512) and preferred == 4096 and largest >= MIB, (smallest, preferred, largest)

# Holes of a thin disk are holes; data is data; what is trimmed is a hole again.
if ours:
    total = 0
    for length, flags in extents(h, 32 * MIB, 16 * MIB):
        assert flags == nbd.STATE_HOLE | nbd.STATE_ZERO, flags
        total += length
    assert 0 < total <= 32 * MIB
h.pwrite(b"a" * 8192, 16 * MIB)
assert state_at(h, 16 * MIB) == 0
h.trim(8192, 16 * MIB)
assert h.pread(8192, 16 * MIB) == bytes(8192)
if ours:
    assert state_at(h, 16 * MIB) == nbd.STATE_HOLE | nbd.STATE_ZERO

# Each kind of write with and without FUA; each kind of zero.
for flags in (0, nbd.CMD_FLAG_FUA):
    h.pwrite(b"b" * 4096, 0, flags)
    assert h.pread(4096, 0) == b"b" * 4096
    for more in (0, nbd.CMD_FLAG_NO_HOLE):
        h.pwrite(b"c" * 12288, 4096)
        h.zero(4096, 8192, flags | more)
        assert h.pread(12288, 4096) == b"c" * 4096 + bytes(4096) + b"c" * 4096
        assert state_at(h, 8192) & nbd.STATE_ZERO or not ours or more
    h.pwrite(b"d" * 4096, 20480)
    h.trim(4096, 20480, flags)
    assert h.pread(4096, 20480) == bytes(4096)
h.pwrite(b"e" * 4096, 32768)
try:
    h.zero(4096, 32768, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(4096, 32768) == bytes(4096)
except nbd.Error as error:
    assert error.errnum == errno.ENOTSUP
    assert h.pread(4096, 32768) == b"e" * 4096, "a refused fast zero changed something"
h.flush()
h.cache(MIB, 0)

# Sector sized and sector aligned, across clusters.
h.pwrite(b"f" * 16384, 65536)
h.pwrite(b"g" * 1024, 65536 + 4096 - 512)
assert h.pread(16384, 65536) == b"f" * 3584 + b"g" * 1024 + b"f" * (16384 - 4608)
h.zero(1536, 65536 + 512)
assert h.pread(4096, 65536) == b"f" * 512 + bytes(1536) + b"f" * 1536 + b"g" * 512
h.trim(512, 65536)
assert h.pread(512, 65536) in (bytes(512), b"f" * 512)

# A read in one piece, and in as many as the server likes, put together by hand.
h.pwrite(b"h" * 4096, 40 * MIB)
for flags in (0, nbd.CMD_FLAG_DF):
    pieces = []

    def chunk(buf, offset, status, error):
        pieces.append((offset, bytes(buf), status))

    data = h.pread_structured(MIB, 40 * MIB - 4096, chunk, flags)
    assert bytes(data) == bytes(4096) + b"h" * 4096 + bytes(MIB - 8192)
    assert sum(len(piece) for _, piece, _ in pieces) == MIB
    if flags:
        assert len(pieces) == 1, "DF was asked for, %d pieces came" % len(pieces)

# What is out of range is refused with the right error, and the connection goes on.
h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_BOUNDS)
refused(errno.EINVAL, h.pread, 4096, size)
refused(errno.EINVAL, h.pread, 4096, size - 512)
refused(errno.ENOSPC, h.pwrite, bytes(4096), size)
refused(errno.ENOSPC, h.pwrite, bytes(4096), size - 512)
if ours:
    refused(errno.ENOSPC, h.zero, 4096, size)
    refused(errno.EINVAL, h.trim, 4096, size)
h.pwrite(b"z" * 4096, size - 4096)
assert h.pread(4096, size - 4096) == b"z" * 4096

# Big requests, and the whole disk at once where a range costs nothing.
big = bytes(range(256)) * (32 * MIB // 256)
h.pwrite(big, MIB)
assert h.pread(32 * MIB, MIB) == big
h.zero(size, 0)
assert h.pread(32 * MIB, MIB) == bytes(32 * MIB)
h.trim(size, 0)
assert h.pread(MIB, size - MIB) == bytes(MIB)

# Many connections see one disk: what one wrote and flushed, the other reads.
other = connect()
for n in range(50):
    block = bytes([n + 1]) * 4096
    h.pwrite(block, n * 4096)
    assert other.pread(4096, n * 4096) == block
other.flush()
other.shutdown()

# Deep pipelining: each answer goes to its own question.
buffers = []
for n in range(256):
    buffer = nbd.Buffer.from_bytearray(bytearray((n % 251 + 1).to_bytes(1, "little") * 4096))
    buffers.append((h.aio_pwrite(buffer, MIB + n * 4096), buffer))
while buffers:
    buffers = [(cookie, buffer) for cookie, buffer in buffers if not h.aio_command_completed(cookie)]
    if buffers:
        h.poll(1000)
for n in range(256):
    assert h.pread(4096, MIB + n * 4096) == bytes([n % 251 + 1]) * 4096

# The list of exports has this one.
name = h.get_export_name()
if ours:
    lister = nbd.NBD()
    lister.set_uri_allow_local_file(True)
    lister.set_opt_mode(True)
    lister.connect_uri(uri)
    names = []
    lister.opt_list(lambda found, description: names.append(found) and 0)
    lister.opt_abort()
    assert name in names, (name, names)
h.shutdown()
print("all commands as they should be")
