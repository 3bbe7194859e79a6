"""Two clients of one cluster, in random turns, against the rules of visibility.

The model is a dictionary of names. The rules: a written file is what it was until close, and is the
new one for everybody once close has returned; an exclusive create holds its name from open on,
unseen; an open file keeps the content it was opened with, whatever becomes of its name; an append
goes behind what is there at its close; a rename over a name replaces it at once. The clients
remember nothing (attr_ttl_ms=0): what one did, the other must see in its next call.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster
from tests.machine.test_namespace import PARTS, SETTINGS

_runs = itertools.count()

clients = st.integers(0, 1)
names = st.sampled_from(["a", "b", "c"])
contents = st.binary(min_size=1, max_size=5000)


class Writing:
    """A file that one client has open for writing."""

    def __init__(self, file: Any, name: str, mode: str, data: bytes) -> None:
        self.file, self.name, self.mode, self.data = file, name, mode, data


class VisibilityMachine(RuleBasedStateMachine):
    """Two clients, one flat directory, and what every name must hold."""

    both: ClassVar[list[Any]]
    reading = Bundle("reading")
    writing = Bundle("writing")

    def __init__(self) -> None:
        super().__init__()
        self.base = f"/visible-{os.getpid()}-{next(_runs)}"
        self.both[0].mkdir(self.base)
        self.files: dict[str, bytes] = {}
        self.reserved: set[str] = set()
        self.open_writers: list[Writing] = []

    def at(self, name: str) -> str:
        """Return a name's path."""
        return f"{self.base}/{name}"

    @rule(client=clients, name=names, data=contents)
    def replace(self, client: int, name: str, data: bytes) -> None:
        if name in self.reserved:
            with pytest.raises(FileExistsError):
                self.both[client].pipe_file(self.at(name), data)
            return
        self.both[client].pipe_file(self.at(name), data)
        self.files[name] = data

    @rule(
        client=clients,
        name=names,
        mode=st.sampled_from(["wb", "xb", "ab"]),
        data=contents,
        target=writing,
    )
    def begin(self, client: int, name: str, mode: str, data: bytes) -> Any:
        """Open a file for writing and write; nobody sees anything yet."""
        if name in self.reserved or (mode == "xb" and name in self.files):
            with pytest.raises(FileExistsError):
                self.both[client].open(self.at(name), mode)
            return multiple()
        file = self.both[client].open(self.at(name), mode)
        file.write(data)
        if mode == "xb":
            self.reserved.add(name)
        one = Writing(file, name, mode, data)
        self.open_writers.append(one)
        return one

    @rule(one=consumes(writing))
    def finish(self, one: Writing) -> None:
        """Close a file that is being written."""
        self.open_writers.remove(one)
        if one.mode == "xb":
            self.reserved.discard(one.name)
        elif one.name in self.reserved:
            with pytest.raises(FileExistsError):
                one.file.close()
            return
        one.file.close()
        before = self.files.get(one.name, b"") if one.mode == "ab" else b""
        self.files[one.name] = before + one.data

    @rule(one=consumes(writing))
    def discard(self, one: Writing) -> None:
        """Give up a file that is being written."""
        self.open_writers.remove(one)
        if one.mode == "xb":
            self.reserved.discard(one.name)
        one.file.discard()

    @rule(client=clients, name=names)
    def remove(self, client: int, name: str) -> None:
        if name not in self.files:
            with pytest.raises(FileNotFoundError):
                self.both[client].rm_file(self.at(name))
            return
        self.both[client].rm_file(self.at(name))
        del self.files[name]

    @rule(client=clients, name=names, new=names)
    def rename(self, client: int, name: str, new: str) -> None:
        meta = self.both[client].core.meta
        if name not in self.files:
            with pytest.raises(FileNotFoundError):
                meta.rename(self.at(name), self.at(new))
        elif new in self.reserved:
            with pytest.raises(FileExistsError):
                meta.rename(self.at(name), self.at(new))
        else:
            meta.rename(self.at(name), self.at(new))
            self.files[new] = self.files.pop(name)

    @rule(client=clients, name=names, size=st.integers(0, 6000))
    def truncate(self, client: int, name: str, size: int) -> None:
        if name not in self.files:
            with pytest.raises(FileNotFoundError):
                self.both[client].truncate(self.at(name), size)
            return
        self.both[client].truncate(self.at(name), size)
        self.files[name] = self.files[name][:size].ljust(size, b"\0")

    @rule(client=clients, name=names, target=reading)
    def open_for_reading(self, client: int, name: str) -> Any:
        """Open a file and keep it open."""
        if name not in self.files:
            with pytest.raises(FileNotFoundError):
                self.both[client].open(self.at(name), "rb")
            return multiple()
        return self.both[client].open(self.at(name), "rb"), self.files[name]

    @rule(opened=reading)
    def reread(self, opened: tuple[Any, bytes]) -> None:
        """An open file has the content that it was opened with."""
        file, content = opened
        file.seek(0)
        assert file.read() == content

    @invariant()
    def both_see_what_is_there(self) -> None:
        """Listing, sizes and contents, from both sides."""
        for fs in self.both:
            listed = {e["name"].rpartition("/")[2]: e["size"] for e in fs.ls(self.base)}
            assert listed == {name: len(data) for name, data in self.files.items()}
            contents = fs.cat([self.at(name) for name in self.files]) if self.files else {}
            assert contents == {self.at(name): data for name, data in self.files.items()}

    def teardown(self) -> None:
        """Leave nothing for the next example."""
        for one in self.open_writers:
            one.file.discard()
        self.both[0].rm(self.base, recursive=True)


@pytest.mark.parametrize("part", PARTS[: max(2, len(PARTS) // 2)])
def test_two_clients(engine_cluster: Cluster, part: int) -> None:
    """Random turns of two clients, on each engine."""
    machine: Any = type(f"Machine{part}", (VisibilityMachine,), {})
    options = {**engine_cluster.storage_options, "skip_instance_cache": True, "attr_ttl_ms": 0}
    # Each by a server of its own, where there are several.
    servers = engine_cluster.meta_addresses
    machine.both = [
        FFSFileSystem(**{**options, "url": f"ffs://{address}", "hosts": ()})
        for address in (servers[0], servers[-1])
    ]
    run_state_machine_as_test(machine, settings=SETTINGS)
