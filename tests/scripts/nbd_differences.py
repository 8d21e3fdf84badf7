#!/usr/bin/python3
"""nbd_differences.py URI CONTEXT FILE: what a backup tool does: reads the extents that CONTEXT says are dirty, and
those alone, over what FILE holds from before. Prints the bytes that were copied."""
import sys

import nbd

uri, context, path = sys.argv[1:]
allocation = nbd.CONTEXT_BASE_ALLOCATION
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.add_meta_context(allocation)
h.add_meta_context(context)
h.add_meta_context("x-storagerouter:diff:there-is-no-such-one")
h.connect_uri(uri)
assert h.can_meta_context(context), "not offered"
assert h.can_meta_context(allocation)
assert not h.can_meta_context("x-storagerouter:diff:there-is-no-such-one")

listed = []
lister = nbd.NBD()
lister.set_uri_allow_local_file(True)
lister.set_opt_mode(True)
lister.connect_uri(uri)
lister.add_meta_context("x-storagerouter:diff:")
lister.opt_list_meta_context(lambda name: listed.append(name) and 0)
lister.opt_abort()
assert all(name.startswith("x-storagerouter:diff:") for name in listed) and listed, listed

size, at, copied = h.get_size(), 0, 0
with open(path, "r+b") as file:
    file.truncate(size)
    while at < size:
        dirty, seen = [], []

        def add(name, offset, entries, error):
            assert offset == at
            seen.append(name)
            if name == context:
                dirty.extend(zip(entries[0::2], entries[1::2]))

        h.block_status(min(size - at, 1 << 30), at, add)
        assert sorted(seen) == sorted([allocation, context]), seen
        for length, flags in dirty:
            assert flags in (0, 1), flags
            if flags:
                file.seek(at)
                for part in range(at, at + length, 1 << 20):
                    file.write(h.pread(min(1 << 20, at + length - part), part))
                copied += length
            at += length
h.shutdown()
print(copied)
