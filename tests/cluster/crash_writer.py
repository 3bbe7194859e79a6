"""A client that writes files until it is told to stop, or dies; run as a process by test_crash.py.

Says on stdout what it does, a line each, before and after: `begin PATH DIGEST`, then `done PATH`
when the file was acknowledged or `failed PATH ERROR` when it was not. What began and got no further
word is in doubt. An end of its standard input tells it to finish the file in hand and stop, once a
few were acknowledged.
"""

from __future__ import annotations

import hashlib
import random
import select
import sys

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import FFSError

SIZES = (0, 1, 4096, 65_536, 65_537, 200_000, 400_000)
NAMES = 40
FILES_MIN = 4
"""However soon it is told to stop: on a busy machine that may be before it has begun."""


def say(*words: object) -> None:
    """Write one line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def told_to_stop() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def write_one(fs: FFSFileSystem, path: str, data: bytes, chance: random.Random) -> None:
    """Write a file in one of the ways that clients do."""
    if chance.random() < 0.5:
        fs.pipe_file(path, data)
        return
    with fs.open(path, "wb") as file:
        for start in range(0, len(data), 50_000):
            file.write(data[start : start + 50_000])


def main(url: str, key_file: str, directory: str, seed: str) -> None:
    """Write and replace files of one directory."""
    chance = random.Random(int(seed))
    fs = FFSFileSystem(url=url, key_file=key_file, skip_instance_cache=True)
    done = 0
    while done < FILES_MIN or not told_to_stop():
        path = f"{directory}/{chance.randrange(NAMES)}"
        data = chance.randbytes(chance.choice(SIZES))
        say("begin", path, hashlib.sha256(data).hexdigest())
        try:
            write_one(fs, path, data, chance)
        except FFSError as error:
            say("failed", path, type(error).__name__, error)
        else:
            say("done", path)
            done += 1
    fs.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
