"""A client process that changes names as fast as it can, and knows what must come of it.

`python -m tests.cluster.mutator OPTIONS DIRECTORY SEED [SHARED]`: OPTIONS is the file system's
keywords as JSON. Several threads work, each in a directory of its own, DIRECTORY-N, or all in
SHARED, each with names of its own. Every operation must succeed: one that raises ends the process
with its traceback. Each can be told from one that happened twice: names are new or must be there,
and the version of a file counts its changes.

On a line `report` it stops working, prints as JSON what must be there now and how often it had to
try again, and waits for `go`; at the end of standard input it ends.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from ffs.client.filesystem import FFSFileSystem
from ffs.client.retry import Action, RetryPolicy

THREADS = 4
CHAINS = 3
CHANGES_MAX = 14
"""Appends to a file: after a few more it is rewritten, which is one more change."""


class Mutator:
    """One process's names: `files` by path to (size, version), `directories`, `links` by path."""

    def __init__(self, fs: FFSFileSystem, directory: str, seed: int, shared: str) -> None:
        self._fs = fs
        self.place = shared or directory
        self._prefix = f"{directory.rsplit('/', 1)[1]}-" if shared else ""
        self._random = random.Random(seed)
        self._number = 0
        self.files: dict[str, tuple[int, int]] = {}
        self.directories: list[str] = []
        self.operations = 0
        self.hot = 0
        """How often it replaced the one file of SHARED that all replace."""
        fs.makedirs(self.place, exist_ok=True)
        for _ in range(CHAINS):
            self.create()

    def step(self) -> None:
        """Do one thing."""
        verbs: list[Callable[[], None]] = [
            self.create,
            self.create_exclusive,
            self.replace,
            self.truncate,
            self.rename,
            self.rename,
            self.rename_over,
            self.copy,
            self.remove,
            self.append,
            self.link,
            self.mkdir,
            self.rmdir,
            *([self.replace_hot] if self._prefix else []),
        ]
        self._random.choice(verbs)()
        self.operations += 1

    def create(self) -> None:
        """A file that must not be lost."""
        path, data = self._new(), self._data()
        self._fs.pipe_file(path, data)
        self.files[path] = (len(data), 1)

    def create_exclusive(self) -> None:
        """The same, under a name that is reserved first."""
        path, data = self._new(), self._data()
        with self._fs.open(path, "xb") as file:
            file.write(data)
        self.files[path] = (len(data), 1)

    def replace(self) -> None:
        """New content: the version counts it."""
        path, data = self._some(), self._data()
        self._fs.pipe_file(path, data)
        self.files[path] = (len(data), self.files[path][1] + 1)

    def replace_hot(self) -> None:
        """A file that everybody replaces: the version counts all of it."""
        self._fs.pipe_file(f"{self.place}/hot", self._data())
        self.hot += 1

    def truncate(self) -> None:
        """Another size: the version counts it."""
        path, size = self._some(), self._random.randrange(3_000)
        self._fs.truncate(path, size)
        self.files[path] = (size, self.files[path][1] + 1)

    def rename(self) -> None:
        """To a new name: a second time there would be nothing to rename."""
        source, target = self._some(), self._new()
        self._fs.mv(source, target)
        self.files[target] = self.files.pop(source)

    def rename_over(self) -> None:
        """Over a name that is there."""
        if len(self.files) > CHAINS:
            source, target = self._random.sample(sorted(self.files), 2)
            self._fs.mv(source, target)
            self.files[target] = self.files.pop(source)

    def copy(self) -> None:
        """A file that shares its content."""
        source, target = self._some(), self._new()
        self._fs.cp_file(source, target)
        self.files[target] = (self.files[source][0], 1)

    def append(self) -> None:
        """A second time it would be longer."""
        path, data = self._some(), self._data() or b"more"
        if self.files[path][1] >= CHANGES_MAX:
            return
        with self._fs.open(path, "ab") as file:
            file.write(data)
        size, version = self.files[path]
        self.files[path] = (size + len(data), version + 1)

    def link(self) -> None:
        """One more name, and then not: a second time it would exist, or be gone."""
        source, target = self._some(), self._new()
        self._fs.link(source, target)
        assert self._fs.info(target)["nlink"] == 2
        self._fs.rm_file(target)

    def remove(self) -> None:
        """A second time there would be nothing to remove."""
        if len(self.files) > CHAINS:
            path = self._some()
            self._fs.rm_file(path)
            del self.files[path]

    def mkdir(self) -> None:
        """A second time it would exist."""
        path = self._new()
        self._fs.mkdir(path)
        self.directories.append(path)

    def rmdir(self) -> None:
        """A second time it would be gone."""
        if self.directories:
            self._fs.rmdir(self.directories.pop())

    def state(self) -> dict[str, Any]:
        """What must be there, by path."""
        found: dict[str, Any] = {path: list(facts) for path, facts in self.files.items()}
        return found | dict.fromkeys(self.directories, "directory")

    def _new(self) -> str:
        self._number += 1
        return f"{self.place}/{self._prefix}{self._number:06}"

    def _some(self) -> str:
        return self._random.choice(sorted(self.files))

    def _data(self) -> bytes:
        return bytes(self._random.randrange(0, 3) * self._random.randrange(1, 1_000))


class CountingPolicy:
    """The client's retry policy, and how often it was asked."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._decide = policy.decide_call
        self.retries = 0

    def __call__(self, *arguments: Any) -> Any:
        """Decide, and count."""
        decision = self._decide(*arguments)
        self.retries += decision.action is not Action.FAIL
        return decision


class Workers:
    """Threads that each work for a mutator, and stand still between `pause` and `go`."""

    def __init__(self, mutators: list[Mutator]) -> None:
        self._mutators = mutators
        self._paused = threading.Event()
        self._meeting = threading.Barrier(len(mutators) + 1)
        for mutator in mutators:
            threading.Thread(target=self._work, args=(mutator,), daemon=True).start()

    def pause(self) -> None:
        """Return when everybody has finished what he did."""
        self._paused.set()
        self._meeting.wait()

    def go(self) -> None:
        """Let everybody go on."""
        self._paused.clear()
        self._meeting.wait()

    def _work(self, mutator: Mutator) -> None:
        try:
            while True:
                if self._paused.is_set():
                    self._meeting.wait()
                    self._meeting.wait()
                mutator.step()
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def main() -> None:
    """Work until standard input ends."""
    options, directory, seed, *shared = sys.argv[1:]
    fs = FFSFileSystem(skip_instance_cache=True, **json.loads(options))
    policy = fs.core.meta._policy
    counting = CountingPolicy(policy)
    vars(policy)["decide_call"] = counting
    mutators = [
        Mutator(fs, f"{directory}-{i}", int(seed) + i, *shared or [""]) for i in range(THREADS)
    ]
    workers = Workers(mutators)
    while sys.stdin.readline() == "report\n":
        workers.pause()
        facts = {
            "directories": sorted({mutator.place for mutator in mutators}),
            "state": {path: fact for mutator in mutators for path, fact in mutator.state().items()},
            "hot": sum(mutator.hot for mutator in mutators),
            "operations": sum(mutator.operations for mutator in mutators),
            "retries": counting.retries,
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        if sys.stdin.readline() != "go\n":
            return
        workers.go()


if __name__ == "__main__":
    main()
