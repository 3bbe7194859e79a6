"""Fork many times, read and write on both sides, and report as JSON (see test_client_fork.py).

Arguments: the path of a file of 4 KiB samples, a directory to write into, how many forks. Children
are seeded by their number; each tells by a pipe who it is and whether its bytes were right.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

from ffs.client.filesystem import FFSFileSystem

SAMPLE = 4096


def right(fs: FFSFileSystem, path: str, data: bytes, seed: int) -> bool:
    """Read some random samples in one call; return whether they are the file's."""
    picks = random.Random(seed).sample(range(len(data) // SAMPLE), 8)
    out = bytearray(SAMPLE * len(picks))
    fs.readv_into([(path, p * SAMPLE, SAMPLE) for p in picks], out)
    return out == b"".join(data[p * SAMPLE : (p + 1) * SAMPLE] for p in picks)


def work(fs: FFSFileSystem, path: str, data: bytes, who: str, directory: str, number: int) -> bool:
    """Do one side's share of one fork."""
    good = right(fs, path, data, hash((who, number)))
    if number % 10 == 0:
        fs.pipe_file(f"{directory}/{who}-{number}", f"{who} {number}".encode())
    return good


def main(path: str, directory: str, forks: int) -> int:
    """Fork, work on both sides at once, wait, count."""
    fs = FFSFileSystem()
    data = fs.cat_file(path)
    identities, failed = {fs.core.meta.client_id}, 0
    started = time.monotonic()
    for number in range(forks):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            good = work(fs, path, data, "child", directory, number)
            os.write(write_end, bytes([good]) + fs.core.meta.client_id)
            os._exit(0)
        os.close(write_end)
        failed += not work(fs, path, data, "parent", directory, number)
        answer = os.read(read_end, 64)
        os.close(read_end)
        _, status = os.waitpid(pid, 0)
        failed += status != 0 or answer[:1] != b"\x01"
        identities.add(answer[1:])
    seconds = time.monotonic() - started
    print(json.dumps({"seconds": seconds, "failed": failed, "identities": len(identities)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
