"""docs/cli.md shows what the commands print: each example is run, in order, and compared.

`python -m tests.cli.test_docs` writes the outputs anew after something was changed on purpose.
Numbers, times, addresses and sizes that a machine decides are not compared, only their places.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs.cli.app import COMMANDS, main
from tests.harness import Cluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\$ (?:(?P<feeder>.*) \| )?ffs (?P<words>.*)$")
VOLATILE = (
    (re.compile(r"\b\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}\b"), "ENTRY"),
    # A first scrub pass over nothing ends soon after the start: before we look, then, or later.
    (re.compile(r"\b\d+ chunks(?= +(none yet|\d{4}-))"), "-"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|none yet(?= +\d)"), "TIME"),
    (re.compile(r'(?<="(began|ended)": )null'), "N"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"/[\w./-]+/(?=storage-\d)"), "DIR/"),
    (re.compile(r"\d+(\.\d+)? (B|KiB|MiB|GiB|TiB)\b"), "SIZE"),
    (re.compile(r"\d+(\.\d+)? (us|ms|s)\b"), "DURATION"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "TRACE"),
    (re.compile(r"\d+(\.\d+)?"), "N"),
    (re.compile(r"[ ]+"), " "),
)


def make_local_files(directory: Path) -> None:
    """What the page says lies in the directory where the commands are typed."""
    train = directory / "train"
    (train / "extra").mkdir(parents=True)
    (train / "part-0").write_bytes(bytes(range(256)) * 8_192)
    (train / "part-1").write_bytes(bytes(range(255)) * 4_096)
    (train / "labels.csv").write_text("part,label\n0,cat\n1,dog\n")
    (train / "extra" / "notes").write_text("made by hand\n")


class _Standard(io.TextIOWrapper):
    """Standard output or error in memory."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", write_through=True)

    def text(self) -> str:
        """What was written."""
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


def run(line: str) -> str:
    """Run the command behind a prompt; returns what a terminal would show, and a bad status."""
    match = PROMPT.match(line)
    assert match is not None, line
    feeder = match["feeder"]
    fed = subprocess.run(shlex.split(feeder), check=True, capture_output=True) if feeder else None
    both, before = _Standard(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(fed.stdout if fed else b""))
    try:
        with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
            status = main(shlex.split(match["words"]))
    finally:
        sys.stdin = before
    shown = both.text()
    if shown and not shown.endswith("\n"):
        shown += "\n"
    return shown + (f"[exit status {status}]\n" if status else "")


def examples(text: str) -> Iterator[tuple[str, str]]:
    """(prompt line, shown output) of every command in a block."""
    for piece in re.split(r"^(?=\$ )", text, flags=re.MULTILINE):
        if piece:
            line, _, shown = piece.partition("\n")
            yield line, shown


def normal(text: str) -> str:
    """Output without what differs from machine to machine."""
    for pattern, name in VOLATILE:
        text = pattern.sub(name, text)
    return text


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of its own, since the page's paths are fixed and its totals are shown."""
    with Cluster(tmp_path_factory.mktemp("docs"), storage=2) as cluster:
        yield cluster


def test_examples_print_what_the_page_shows(
    fresh: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in fresh.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    make_local_files(tmp_path)
    os.symlink(fresh.meta_dir, tmp_path / "meta")
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for line, shown in examples(block):
            assert normal(run(line)) == normal(shown), line


def test_every_command_has_a_section() -> None:
    headings = re.findall(r"^### ffs (\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


def rewrite() -> None:
    """Write the page's outputs as they are now."""

    def renewed(match: re.Match[str]) -> str:
        shown = "".join(f"{line}\n{run(line)}" for line, _ in examples(match[1]))
        return f"```console\n{shown}```"

    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Cluster(directory / "cluster", storage=2) as cluster:
            os.environ.update(cluster.environment)
            (directory / "here").mkdir()
            make_local_files(directory / "here")
            os.symlink(cluster.meta_dir, directory / "here" / "meta")
            with contextlib.chdir(directory / "here"):
                page = BLOCK.sub(renewed, text).replace(str(directory / "cluster"), "/srv/ffs")
                PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
