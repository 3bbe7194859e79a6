"""S12, with real processes: `ffs up` with TLS, as its user sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import TlsError
from tests.harness import Process


def ffs(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("FFS_")}
    return subprocess.run(
        [sys.executable, "-m", "ffs.cli", *arguments],
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )


def issue(directory: Path) -> None:
    """Have the command make an authority, and certificates for one machine and one client."""
    for arguments in (
        ("init", str(directory)),
        ("issue", str(directory), "up", "--role", "meta", "--role", "storage"),
        ("issue", str(directory), "me", "--role", "client"),
    ):
        done = ffs("auth", "ca", *arguments)
        assert done.returncode == 0, done.stderr


def ffs_up(authority: Path, directory: Path, *more: str) -> Process:
    """`ffs up` with TLS, to be started."""
    argv = [sys.executable, "-m", "ffs.cli", "up", "--data", str(directory / "data")]
    argv += ["--exit-with-parent", *more]
    for name in ("ca_file=ca.crt", "cert_file=up.crt", "key_file=up.key"):
        key, _, file = name.partition("=")
        argv += ["--set", f"tls.{key}={authority / file}"]
    return Process("up", argv, directory)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority made by the command, and its certificates."""
    directory = tmp_path_factory.mktemp("ca")
    issue(directory)
    return directory


@pytest.fixture(scope="module")
def up(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A running `ffs up` with TLS."""
    process = ffs_up(authority, tmp_path_factory.mktemp("up"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
def options(up: Process, authority: Path) -> dict[str, Any]:
    """What a client needs."""
    url, key = up.ready.split()
    return {
        "url": url,
        "key_file": key.removeprefix("key="),
        "tls_ca_file": str(authority / "ca.crt"),
        "tls_cert_file": authority / "me.crt",
        "tls_key_file": str(authority / "me.key"),
        "skip_instance_cache": True,
    }


def test_files_go_in_and_out(options: dict[str, Any]) -> None:
    fs = FFSFileSystem(**options)
    fs.pipe_file("/in-and-out", b"x" * 100_000)
    assert fs.cat_file("/in-and-out") == b"x" * 100_000
    fs.close()


def test_a_client_that_wants_data_encrypted(options: dict[str, Any]) -> None:
    """These daemons do not: nothing is said to them."""
    fs = FFSFileSystem(**options, tls_data=True, same_host="off")
    with pytest.raises(TlsError, match="does not speak TLS"):
        fs.pipe_file("/f", b"x")
    fs.close()


def test_a_client_without_certificates(options: dict[str, Any]) -> None:
    plain = {k: v for k, v in options.items() if not k.startswith("tls_")}
    fs = FFSFileSystem(**plain)
    with pytest.raises(TlsError, match="without TLS"):
        fs.ls("/")
    fs.close()


def test_the_command_line_takes_them_from_the_environment(
    options: dict[str, Any], authority: Path
) -> None:
    environment = {"FFS_URL": options["url"], "FFS_KEY_FILE": options["key_file"]}
    without = ffs("ls", "/", **environment)
    assert without.returncode != 0
    assert "without TLS" in without.stderr
    for name, file in (("CA_FILE", "ca.crt"), ("CERT_FILE", "me.crt"), ("KEY_FILE", "me.key")):
        environment[f"FFS_TLS__{name}"] = str(authority / file)
    done = ffs("status", "--json", **environment)
    assert done.returncode == 0, done.stderr


def _child_of(up: Process, module: str) -> int:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # one that has ended since it was listed
            words = entry.read_bytes().split(b"\0")
            parent = entry.with_name("stat").read_text().rpartition(")")[2].split()[1]
            if module.encode() in words and int(parent) == up.pid:
                return int(entry.parent.name)
    raise AssertionError(f"no {module} runs")


def test_a_killed_server_is_found_again_with_new_certificates(
    up: Process, options: dict[str, Any], authority: Path
) -> None:
    fs = FFSFileSystem(**options)
    fs.pipe_file("/before", b"before")
    done = ffs("auth", "ca", "issue", str(authority), "up", "--role", "meta", "--role", "storage")
    assert done.returncode == 0, done.stderr
    for module in ("ffs.server.meta", "ffs.server.storage"):
        os.kill(_child_of(up, module), signal.SIGKILL)
    assert fs.cat_file("/before") == b"before"
    fs.pipe_file("/after", b"after")
    assert fs.cat_file("/after") == b"after"
    fs.close()
