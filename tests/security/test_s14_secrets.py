"""S14: secrets are searched for in all that we say, write and hold: they are where they belong.

A cluster that logs all it can is worked with, by key and by token, well and badly; then its logs,
data, process tables and backups, and the client's errors, representations and pickles, are searched
for the cluster key, a token's secret and what follows from the key, as bytes and as text.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import pickle
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ffs.auth.grant import GrantKeys
from ffs.auth.token import Token
from ffs.cli.app import main
from ffs.client.filesystem import FFSFileSystem
from ffs.client.users import Users
from ffs.config import LogConfig
from ffs.key import ClusterKey
from ffs.log import configure
from ffs.seams import SystemClock
from ffs.server.meta.backup import backup
from tests.harness import Cluster

HOME_OF_THE_KEY = "cluster.key"


@dataclass
class Place:
    """A cluster, one client by its key and one by a token, and what must be found nowhere."""

    cluster: Cluster
    fs: Any
    token_file: Path
    ann: Any
    secrets: dict[str, bytes] = field(repr=False)

    def found_in(self, text: bytes) -> list[str]:
        """Which secrets are in it."""
        return [name for name, secret in self.secrets.items() if secret in text]


def spellings(name: str, secret: bytes) -> dict[str, bytes]:
    """A secret as somebody may have written it."""
    return {
        f"{name}, raw": secret,
        f"{name}, hex": secret.hex().encode(),
        f"{name}, HEX": secret.hex().upper().encode(),
        f"{name}, base64": base64.b64encode(secret).rstrip(b"="),
        f"{name}, urlsafe": base64.urlsafe_b64encode(secret).rstrip(b"="),
        f"{name}, repr": repr(secret)[2:-1].encode(),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster that says all it can."""
    tmp_path = tmp_path_factory.mktemp("secrets")
    with Cluster(tmp_path / "cluster", config={"log.level": "debug"}) as cluster:
        yield from _worked_with(cluster, tmp_path)


def _worked_with(cluster: Cluster, tmp_path: Path) -> Iterator[Place]:
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    key = ClusterKey.load(cluster.key_file)
    users = Users(fs.core.meta)
    users.add("ann", 1_234, [1_234])
    token, _ = users.issue(key, "ann", job="test", life_ms=3_600_000)
    token_file = tmp_path / "token"
    token_file.write_text(token.export())
    token_file.chmod(0o600)
    options = {**cluster.storage_options, "key_file": "", "token_file": str(token_file)}
    ann = FFSFileSystem(skip_instance_cache=True, **options)
    secrets = spellings("the cluster key", key._secret) | spellings("a token's", token._secret)
    for label in (b"ffs token signature", b"ffs token secret"):
        secrets |= spellings(label.decode(), key.derive(label))
    for number, (_, grant_key) in enumerate(GrantKeys(key, SystemClock()).live()):
        secrets |= spellings(f"grant key {number}", grant_key)
    yield Place(cluster, fs, token_file, ann, secrets)
    ann.close()
    fs.close()


def work(place: Place) -> list[BaseException]:
    """Do what a client does, also badly; return what was raised."""
    raised: list[BaseException] = []
    fs, ann = place.fs, place.ann
    fs.makedirs("/ann", exist_ok=True)
    fs.chown("/ann", 1_234, 1_234)
    ann.pipe_file("/ann/f", os.urandom(100_000))
    assert len(ann.cat_file("/ann/f")) == 100_000
    fs.pipe_file("/root", b"x" * 10_000)
    fs.chmod("/root", 0o600)
    wrong = place.token_file.with_name("wrong.key")
    wrong.unlink(missing_ok=True)
    ClusterKey.create(wrong)
    forged = place.token_file.with_name("forged.token")
    forged.write_text(place.token_file.read_text()[:-3] + "00\n")
    forged.chmod(0o600)
    options = {**place.cluster.storage_options, "key_file": ""}
    attempts: tuple[Callable[[], object], ...] = (
        lambda: ann.cat_file("/root"),
        lambda: ann.pin("/"),
        lambda: fs.cat_file("/none"),
        lambda: FFSFileSystem(skip_instance_cache=True, **{**options, "key_file": str(wrong)}).ls(
            "/"
        ),
        lambda: FFSFileSystem(
            skip_instance_cache=True, **{**options, "token_file": str(forged)}
        ).ls("/"),
    )
    for attempt in attempts:
        with pytest.raises(Exception) as caught:
            attempt()
        raised.append(caught.value)
    return raised


def test_s14_nothing_that_servers_write_or_show(place: Place, tmp_path: Path) -> None:
    work(place)
    copy = tmp_path / "names.ffsbackup"
    backup(str(place.cluster.meta_dir), copy)
    looked_at = 0
    for path in [copy, *place.cluster.directory.rglob("*")]:
        if path.is_file() and path.name != HOME_OF_THE_KEY:
            assert not place.found_in(path.read_bytes()), path
            looked_at += 1
    assert looked_at > 5
    for pid in place.cluster.pids.values():
        for name in ("environ", "cmdline", "comm", "status"):
            assert not place.found_in(Path(f"/proc/{pid}/{name}").read_bytes()), name
    said = (place.cluster.directory / "log" / "meta-0.err").read_text()
    assert "debug" in said or "request_refused" in said, "it was told to say much"


def test_s14_nothing_that_a_client_says_or_holds_in_words(
    place: Place, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    words: list[str] = []
    for error in work(place):
        words += traceback.TracebackException.from_exception(error, capture_locals=True).format()
        words += [repr(error), str(error), repr(getattr(error, "where", ""))]
    words += everything_in_words(place.fs) + everything_in_words(place.ann)
    words += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    assert len(words) > 100
    for text in words:
        assert not place.found_in(text.encode(errors="surrogateescape")), text[:200]
    for fs in (place.fs, place.ann):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert not place.found_in(pickle.dumps(fs, protocol))
        assert not place.found_in(fs.to_json().encode())
    captured = capfd.readouterr()
    assert not place.found_in((captured.out + captured.err).encode())


def everything_in_words(top: object) -> list[str]:
    """The representation of an object of ours, and of all that it leads to."""
    seen: dict[int, object] = {}
    words: list[str] = []
    waiting = [top]
    while waiting and len(seen) < 20_000:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        with contextlib.suppress(ReferenceError):
            words.append(repr(one))
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            waiting += [*one]
        elif type(one).__module__.startswith("ffs."):
            waiting += [*getattr(one, "__dict__", {}).values()]
            slots = [n for kind in type(one).__mro__ for n in getattr(kind, "__slots__", ())]
            public = [n for n in slots if n not in ("_secret", "__weakref__")]
            waiting += [getattr(one, name) for name in public if hasattr(one, name)]
    return words


@pytest.mark.parametrize("way", ["key", "token"])
def test_s14_nothing_that_commands_print(
    place: Place, capfd: pytest.CaptureFixture[str], way: str
) -> None:
    work(place)
    capfd.readouterr()
    files = {"key": ("--key-file", str(place.cluster.key_file))}
    files["token"] = ("--token-file", str(place.token_file))
    reach = (*files[way], "--url", place.cluster.url, "--debug")
    for argv in (
        ("status", "--json"),
        ("ls", "/ann", "--json"),
        ("cat", "/root"),
        ("config", "--json"),
        ("auth", "user", "list"),
    ):
        with contextlib.suppress(SystemExit):
            main([*argv, *(reach if argv[0] != "config" else ("--debug",))])
        said = capfd.readouterr()
        assert not place.found_in((said.out + said.err).encode()), argv
        assert said.out or said.err, argv


def test_s14_secrets_have_no_words(place: Place) -> None:
    key, token = ClusterKey.load(place.cluster.key_file), Token.load(place.token_file)
    for secret in (key, token, place.ann.core.meta.grants._key):
        said = f"{secret} {secret!r} {secret!s}"
        assert not place.found_in(said.encode())
        stream = io.StringIO()
        handler = configure(LogConfig(level="debug", json=True), stream)
        try:
            logging.getLogger("ffs.test").warning("said %s", secret, extra={"fact": secret})
        finally:
            logging.getLogger("ffs").removeHandler(handler)
            logging.getLogger("ffs").propagate = True
        assert "said" in stream.getvalue()
        assert not place.found_in(stream.getvalue().encode())
        with pytest.raises((TypeError, ValueError)):
            json.dumps(secret)


def test_s14_servers_leave_no_core(place: Place) -> None:
    for pid in place.cluster.pids.values():
        soft, _ = resource.prlimit(pid, resource.RLIMIT_CORE)
        assert soft == 0


def test_s14_a_crash_leaves_no_core(tmp_path: Path) -> None:
    """A process that has loaded a key ends by SIGSEGV: nothing is written, nobody may look."""
    program = (
        "import ctypes, os, resource\n"
        "from ffs.server.process import leave_no_core\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "leave_no_core()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)\n"
        "os.kill(os.getpid(), 11)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (ended.returncode, ended.stdout) == (-11, "0\n"), ended.stderr
    assert not list(tmp_path.iterdir())
