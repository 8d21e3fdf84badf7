#!/usr/bin/python3
"""sqlite_client.py DATABASE NOTED MODE: inserts rows until it fails, and notes each committed id in NOTED,
which lies outside of the volume under test. MODE is SQLite's journal_mode."""
import os
import sqlite3
import sys

path, noted, mode = sys.argv[1:4]
db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA journal_mode=" + mode)
# With FULL, a rollback journal that was deleted may be there again after a crash of the file system, and the last
# commit is undone; EXTRA syncs the directory too, so that a commit that returned is one.
db.execute("PRAGMA synchronous=EXTRA")
db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, filler BLOB NOT NULL)")
next_id = (db.execute("SELECT max(id) FROM t").fetchone()[0] or 0) + 1
with open(noted, "a") as out:
    while True:
        count = 1 + next_id % 5
        db.execute("BEGIN")
        for number in range(next_id, next_id + count):
            db.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(100 + number * 37 % 3000)))
        if next_id % 7 == 0:
            db.execute("UPDATE t SET filler = zeroblob(300) WHERE id % 11 = 3 AND id > ?", (next_id - 50,))
        db.execute("COMMIT")
        # Only now it is promised.
        out.write("".join("%d\n" % number for number in range(next_id, next_id + count)))
        out.flush()
        next_id += count
