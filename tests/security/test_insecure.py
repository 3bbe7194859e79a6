"""`auth = "insecure"`: only if it was typed, on loopback alone, and said loudly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs.auth.insecure import refuse_remote
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import AuthError, ConfigError
from ffs.key import ClusterKey
from tests.harness import Process

META = [sys.executable, "-m", "ffs.server.meta", "--port", "0"]
STORAGE = [sys.executable, "-m", "ffs.server.storage", "--meta", "127.0.0.1:1", "--port", "0"]
UP = [sys.executable, "-m", "ffs.server.up"]


def refused(tmp_path: Path, command: list[str], *arguments: str) -> str:
    """What a server says that does not start."""
    data = ["--target", str(tmp_path / "t")] if command is STORAGE else ["--data", str(tmp_path)]
    ended = subprocess.run(
        [*command, *data, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("command", [META, STORAGE, UP], ids=["meta", "storage", "up"])
def test_other_addresses_are_refused(tmp_path: Path, command: list[str]) -> None:
    assert "loopback" in refused(tmp_path, command, "--insecure", "--host", "0.0.0.0")


@pytest.mark.parametrize("command", [META, STORAGE, UP], ids=["meta", "storage", "up"])
def test_configuration_alone_does_not_do_it(tmp_path: Path, command: list[str]) -> None:
    ClusterKey.create(tmp_path / "some.key")
    key = () if command is UP else ("--key-file", str(tmp_path / "some.key"))
    name = "storage" if command is STORAGE else "meta"
    said = refused(tmp_path, command, *key, "--set", f"{name}.auth=insecure")
    assert "--insecure was not typed" in said


@pytest.mark.parametrize("command", [META, STORAGE], ids=["meta", "storage"])
def test_a_key_or_the_flag_and_not_both(tmp_path: Path, command: list[str]) -> None:
    for arguments in ([], ["--insecure", "--key-file", "x"]):
        ended = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 2 and "--insecure" in ended.stderr


@pytest.fixture(scope="module")
def open_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`ffs up --insecure`."""
    directory = tmp_path_factory.mktemp("insecure")
    argv = [*UP, "--data", str(directory / "data"), "--insecure", "--exit-with-parent"]
    running = Process("up", argv, directory)
    running.start()
    yield running
    running.terminate()


def url_of(cluster: Process) -> str:
    return cluster.ready.split()[0]


def test_nobody_needs_a_key(open_cluster: Process) -> None:
    assert open_cluster.ready.endswith("key=none")
    fs = FFSFileSystem(url=url_of(open_cluster), auth="insecure", skip_instance_cache=True)
    content = os.urandom(100_000)
    fs.pipe_file("/f", content)
    assert fs.cat_file("/f") == content
    fs.close()


def test_who_did_not_ask_for_it_does_not_come_in_by_chance(
    open_cluster: Process, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no cluster key"):
        FFSFileSystem(url=url_of(open_cluster), skip_instance_cache=True).ls("/")
    key = tmp_path / "key"
    ClusterKey.create(key)
    by_key = FFSFileSystem(url=url_of(open_cluster), key_file=str(key), skip_instance_cache=True)
    with pytest.raises(AuthError):
        by_key.ls("/")
    by_key.close()


def test_it_is_said_and_audited(open_cluster: Process) -> None:
    assert "INSECURE" in open_cluster.log_tail()
    logs = Path(open_cluster.argv[open_cluster.argv.index("--data") + 1]) / "log"
    for name, server in (("meta", "metadata server"), ("storage-1", "storage daemon")):
        text = (logs / f"{name}.log").read_text()
        assert "INSECURE" in text
        audited = [json.loads(line) for line in text.splitlines() if '"ffs.audit"' in line]
        assert {"insecure"} == {one["event"] for one in audited}
        assert {(one["server"], one["host"]) for one in audited} == {(server, "127.0.0.1")}


def test_a_client_without_a_key_stays_on_this_machine(tmp_path: Path) -> None:
    for host in ("192.0.2.1:7411", "0.0.0.0:7411"):
        fs = FFSFileSystem(url=f"ffs://{host}", auth="insecure", skip_instance_cache=True)
        with pytest.raises(ConfigError, match="this machine"):
            fs.ls("/")
    both: dict[str, Any] = {"auth": "insecure", "key_file": str(tmp_path / "key")}
    with pytest.raises(ConfigError, match="a key or a token too"):
        FFSFileSystem(url="ffs://127.0.0.1:1", skip_instance_cache=True, **both).ls("/")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_is_what_the_kernel_says_it_is(host: str) -> None:
    refuse_remote(host, "why")


@pytest.mark.parametrize("host", ["", "10.0.0.1", "::", "::2", "255.255.255.255"])
def test_all_else_is_not(host: str) -> None:
    with pytest.raises(ConfigError):
        refuse_remote(host, "why")
