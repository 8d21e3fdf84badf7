#!/usr/bin/python3
"""postgres_client.py PSQL SOCKETS NOTED: inserts rows through psql until it fails, and notes each committed id
in NOTED, which lies outside of the volume under test."""
import subprocess
import sys

psql, sockets, noted = sys.argv[1:4]
base = [psql, "-h", sockets, "-U", "harness", "-d", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1"]
first = subprocess.run(base + ["-c", "SELECT coalesce(max(id), 0) + 1 FROM t"], check=True, stdout=subprocess.PIPE)
next_id = int(first.stdout)
client = subprocess.Popen(["stdbuf", "-oL"] + base, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
with open(noted, "a") as out:
    while True:
        last = next_id + next_id % 4
        client.stdin.write(
            "INSERT INTO t SELECT n, repeat(md5(n::text), 1 + (n %% 40)::int) FROM generate_series(%d, %d) n;\n"
            "\\echo committed\n" % (next_id, last))
        client.stdin.flush()
        # psql says this only after the server has said that the insert is committed.
        if client.stdout.readline().strip() != "committed":
            sys.exit("the insert of %d failed" % next_id)
        out.write("".join("%d\n" % number for number in range(next_id, last + 1)))
        out.flush()
        next_id = last + 1
