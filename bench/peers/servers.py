"""The servers of the peers: nginx, Redis and Arrow Flight, each a real process on the servers' CPU.

nginx serves a folder with Range requests and sendfile, which is also what an S3 client sees of an
object store without signatures, addressed by path. All of them listen on a free port of 127.0.0.1,
keep what they write in the case's directory and end with the `with` block.

Failure: a program that is not installed is a ConfigError that names it; one that does not get ready
is an UnavailableError with the end of its log.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ffs.errors import ConfigError, UnavailableError

HOST = "127.0.0.1"
READY_S_MAX = 20.0
BUCKET = "bucket"

_NGINX = """
daemon off;
master_process off;
pid {root}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  sendfile on;
  sendfile_max_chunk 2m;
  tcp_nopush on;
  keepalive_requests 1000000000;
  open_file_cache max=64;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  server {{ listen {host}:{port}; root {root}/www; }}
}}
"""


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A running server: where it listens and which process's CPU time counts."""

    port: int
    pid: int


@contextmanager
def nginx(root: Path, data: Path) -> Iterator[PeerServer]:
    """Serve `data` as http://HOST:PORT/bucket/<its name>."""
    program = _program("nginx")
    bucket = root / "www" / BUCKET
    bucket.mkdir(parents=True)
    (bucket / data.name).hardlink_to(data)
    port = _free_port()
    config = root / "nginx.conf"
    config.write_text(_NGINX.format(root=root, host=HOST, port=port))
    with _running([program, "-p", str(root), "-c", str(config)], root, port) as server:
        yield server


@contextmanager
def redis(root: Path) -> Iterator[PeerServer]:
    """Run an empty Redis that keeps everything in memory."""
    root.mkdir()
    port = _free_port()
    command = [_program("redis-server"), "--bind", HOST, "--port", str(port), "--dir", str(root)]
    with _running([*command, "--save", "", "--appendonly", "no"], root, port) as server:
        yield server


@contextmanager
def flight(root: Path, data: Path) -> Iterator[PeerServer]:
    """Serve ranges of `data` as Arrow record batches."""
    root.mkdir()
    port = _free_port()
    command = [sys.executable, "-m", "ffs.bench.peers.flight_server", HOST, str(port), str(data)]
    with _running(command, root, port) as server:
        yield server


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ConfigError(
            f"the comparison needs {name}, which is not installed",
            hint="as root: apt-get install nginx-light redis-server",
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], root: Path, port: int) -> Iterator[PeerServer]:
    log = root / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        ) as process,
    ):
        try:
            _wait_until_ready(process, port, log)
            yield PeerServer(port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + READY_S_MAX
    while time.monotonic() < give_up and process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.02)
    said = log.read_bytes()[-2_000:].decode(errors="replace").strip()
    raise UnavailableError(f"{process.args!r} did not get ready: {said}")
