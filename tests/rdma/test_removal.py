"""A device that is taken out while it is used: calls fail typed, TCP goes on, and so does another
device.

Soft-RoCE of Linux 6.1 goes when the last process has closed it, and tells nobody. What a process
sees of a device that goes at once, its descriptors for news broken, is made here by breaking them;
the same of a daemon's is test_fail_nth.py's (`ibv_req_notify_cq`).
"""

from __future__ import annotations

import subprocess
import sys

from tests.rdma.test_client import peer as peer  # a fixture

TAKEN_OUT = """
import os, socket, time
import numpy as np
from ffs import _reader
from ffs.wire.frame import RdmaFault
from tests.rdma.test_client import ADDRESS, BLOB, LOST, OK, Client, content
client = Client(windows=True)
client.check([(BLOB, 0, 0, 5000)])
before = client.connection

broken, slave = os.openpty()
os.close(slave)  # from now on there is an error in place of news, as the kernel has it
news = [int(name) for name in os.listdir("/proc/self/fd") if name != str(broken)]
for fd in news:
    try:
        if "infinibandevent" in os.readlink(f"/proc/self/fd/{fd}"):
            os.dup2(broken, fd)
    except FileNotFoundError:
        pass

out, give_up = np.zeros(5000, np.uint8), time.monotonic() + 60
while (told := client.read([(BLOB, 0, 0, 5000)], out)) == [OK] and time.monotonic() < give_up:
    pass  # its answer was here before anybody waited for news
assert told == [LOST]
assert not before.alive
assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}

other = _reader.Connection(socket.create_connection(ADDRESS).detach())
give_up = time.monotonic() + 60
found = _reader.connect_qp(other, deadline_ms=20_000)
while found[1] != RdmaFault.FINE and time.monotonic() < give_up:
    assert found[:2] == (OK, RdmaFault.NO_PORT) and "taken out" in found[2], found
    time.sleep(0.1)
    found = _reader.connect_qp(other, deadline_ms=20_000)
client._connection = other  # by the device that has come in its place
client.check([(BLOB, 1, 0, 5000)])
other.close()
print("went on")
"""


def test_a_client_goes_on_by_another_device(peer: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKEN_OUT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
