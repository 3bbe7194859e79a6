"""Processes that run `tests.cluster.mutator`, and what must be true of what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ffs.client.filesystem import FFSFileSystem
from ffs.server.meta.postgres import Connection
from ffs.server.meta.sqlite import DATABASE_NAME, SqliteTransaction, open_database
from tests.harness import Cluster
from tests.namespace import check_database

ROOT = Path(__file__).parents[2]


class Client:
    """A `tests.cluster.mutator` process. Each begins with another metadata server."""

    def __init__(self, cluster: Cluster, index: int, directory: str, seed: int, *shared: str):
        self.directory = directory
        addresses = cluster.meta_addresses
        first = index % len(addresses)
        hosts = addresses[first:] + addresses[:first]
        # Patient enough for a loaded machine: what is looked for is not slowness.
        own = {"url": f"ffs://{hosts[0]}", "hosts": hosts, "meta_deadline_ms": 60_000}
        options = json.dumps(cluster.storage_options | own)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.mutator", options, directory, str(seed), *shared],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        """Let it finish what it does, and return what it expects; it waits for `go`."""
        self._say("report\n")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._ended()
        facts: dict[str, Any] = json.loads(line)
        return facts

    def go(self) -> None:
        """Go on."""
        self._say("go\n")

    def stop(self) -> None:
        """End."""
        self._process.kill()
        self._process.communicate()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(self._ended()) from None

    def _ended(self) -> str:
        return f"client of {self.directory} met an error and ended with {self._process.wait(10)}"


def found_at(fs: FFSFileSystem, directories: Iterable[str]) -> dict[str, Any]:
    """What is there, in a client's words."""
    return {
        entry["name"]: (
            "directory" if entry["type"] == "directory" else [entry["size"], entry["version"]]
        )
        for directory in directories
        for entry in fs.ls(directory, detail=True)
    }


def check(cluster: Cluster) -> None:
    """Hold the database against every invariant."""
    if cluster.postgres is not None:
        connection = Connection(cluster.postgres.url(), writes=True)
        try:
            check_database(connection.open())
        finally:
            connection.close()
        return
    sqlite = open_database(cluster.meta_dir / DATABASE_NAME)
    try:
        check_database(SqliteTransaction(sqlite))
    finally:
        sqlite.close()
