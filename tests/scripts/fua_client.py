#!/usr/bin/python3
"""fua_client.py URI SECONDS FUA: writes 4 KiB at random places, one at a time, by libnbd, with the flag FUA when the
last argument is 1; prints the microseconds of each write, one a line, and last the seconds of all."""
import random
import sys
import time

import nbd

uri, seconds, fua = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
disk = nbd.NBD()
disk.connect_uri(uri)
data, blocks, flags = bytearray(b"\7" * 4096), disk.get_size() // 4096, nbd.CMD_FLAG_FUA if fua else 0
times, clock, write = [], time.perf_counter, disk.pwrite
places = [random.randrange(blocks) * 4096 for _ in range(65536)]
start = before = clock()
while before - start < seconds:
    write(data, places[len(times) % 65536], flags)
    after = clock()
    times.append(after - before)
    before = after
disk.shutdown()
print("\n".join("%.1f" % (t * 1e6) for t in times))
print(before - start)
