"""The capture sees what really goes over the cable: checked with traffic that is known."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.rdma.capture import Capture

SIZE, ROUNDS = 10_000, 20


@pytest.mark.parametrize(("program", "operation"), [("write", "WRITE"), ("send", "SEND")])
def test_a_capture_counts_opcodes_and_payload_by_sender(program: str, operation: str) -> None:
    common = [f"ib_{program}_bw", "-x", "1", "-s", str(SIZE), "-n", str(ROUNDS), "-p", "18519"]
    with Capture("rdma0") as wire:
        server = subprocess.Popen([*common, "-d", "rxe0"], stdout=subprocess.DEVNULL)
        try:
            for _ in range(20):
                client = [*common, "-d", "rxe1", "10.77.0.1"]
                done = subprocess.run(client, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    break
                time.sleep(0.5)  # the server is not listening yet
            assert done.returncode == 0, done.stderr
            assert server.wait(60) == 0
        finally:
            server.kill()
            server.wait()
    seen = wire.opcodes["10.77.0.2"]
    packets = {name: count for name, count in seen.items() if name.startswith(operation)}
    assert packets == {f"{operation}_{part}": ROUNDS for part in ("FIRST", "MIDDLE", "LAST")}
    payload = wire.payload_bytes["10.77.0.2"]
    assert sum(payload[name] for name in packets) == SIZE * ROUNDS
    assert set(wire.opcodes["10.77.0.1"]) == {"ACKNOWLEDGE"}
