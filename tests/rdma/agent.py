"""Runs commands in the guest for whoever asks by TCP; started by init.sh, on Python's own library.

Previous hop: guest.py on the machine outside. A connection is one command: a line of JSON (`token`,
`argv`, `cwd`, `env`, `timeout_s`), then what the command is to read, ended by a half-close. Back
come frames: a letter (`o` output, `e` errors, `k` every second, so that a caller that has gone is
noticed, `x` the end, with the exit status), a length, the bytes. When the caller has gone, or the
time is over, the command's whole session is killed.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO, Any

Send = Callable[[bytes, bytes], None]

PORT = 7
TIMED_OUT = 124
"""The exit status that timeout(1) gives too."""


def serve() -> None:
    """Accept connections until the machine stops."""
    words = dict(w.partition("=")[::2] for w in open("/proc/cmdline").read().split())  # noqa: SIM115
    with socket.create_server(("0.0.0.0", PORT), backlog=32) as listener:
        print("guest: ready", flush=True)
        while True:
            peer, _ = listener.accept()
            threading.Thread(
                target=_serve_one, args=(peer, words["ffs.token"]), daemon=True
            ).start()


def _serve_one(peer: socket.socket, token: str) -> None:
    with peer, peer.makefile("rb") as requests:
        try:
            request = json.loads(requests.readline())
            if request.pop("token") == token:
                _run(peer, requests, request)
        except (ValueError, KeyError, OSError) as error:
            print(f"guest: a request failed: {error!r}", flush=True)


def _run(peer: socket.socket, requests: io.BufferedReader, request: dict[str, Any]) -> None:
    sending = threading.Lock()

    def send(kind: bytes, content: bytes) -> None:
        with sending:
            peer.sendall(kind + struct.pack("<I", len(content)) + content)

    try:
        child = subprocess.Popen(
            request["argv"],
            cwd=request["cwd"],
            env={**os.environ, **request["env"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        send(b"e", f"{request['argv'][0]}: {error}\n".encode())
        send(b"x", b"127")
        return
    assert child.stdin and child.stdout and child.stderr
    outputs = [
        threading.Thread(target=_forward, args=(child, kind, stream, send), daemon=True)
        for kind, stream in ((b"o", child.stdout), (b"e", child.stderr))
    ]
    for thread in outputs:
        thread.start()
    threading.Thread(target=_feed, args=(requests, child.stdin), daemon=True).start()
    status = _wait(child, request["timeout_s"], send)
    for thread in outputs:
        thread.join(2.0)  # a daemon left behind may hold the pipe open
    send(b"x", str(status).encode())


def _wait(child: subprocess.Popen[bytes], timeout_s: float, send: Send) -> int:
    give_up = time.monotonic() + timeout_s
    ended = os.pidfd_open(child.pid)  # waiting costs nothing: child.wait() would look all the time
    try:
        while time.monotonic() < give_up:
            if select.select([ended], [], [], 1.0)[0]:
                return child.wait()
            try:
                send(b"k", b"")
            except OSError:
                break
    finally:
        os.close(ended)
    _kill(child)
    child.wait()
    return TIMED_OUT


def _forward(child: subprocess.Popen[bytes], kind: bytes, stream: IO[bytes], send: Send) -> None:
    try:
        while content := os.read(stream.fileno(), 65_536):
            send(kind, content)
    except OSError:
        pass  # nobody listens any more: _wait notices, too


def _feed(requests: io.BufferedReader, into: IO[bytes]) -> None:
    try:
        while content := requests.read1(65_536):
            into.write(content)
            into.flush()
        into.close()
    except OSError:
        pass  # the command did not want it, or has ended


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the command's session; its members may have groups of their own."""
    for _ in range(3):
        members = [p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if _in(p, child)]
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not members:
            return
        time.sleep(0.05)


def _in(pid: int, child: subprocess.Popen[bytes]) -> bool:
    try:
        return os.getsid(pid) == child.pid
    except ProcessLookupError:
        return False


if __name__ == "__main__":
    serve()
