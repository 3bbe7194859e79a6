"""The whole corpus and every past crash, replayed: needs neither clang nor atheris.

The Python targets run here; the native ones in programs of their own with gcc's sanitizers, which
end at the first finding. `make fuzz` is what searches for new inputs.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
from pathlib import Path

import msgpack
import pytest

from ffs.rpc.codec import LENGTH, METHODS
from tests.fuzz.mutate import value_changed
from tests.fuzz.seeds import CORPORA, rpc_requests
from tests.fuzz.targets import TARGETS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORPUS_BYTES_MAX = 2 << 20
MEMORY_BYTES_MAX = 64 << 20


def inputs(target: str) -> list[Path]:
    """The corpus of a target, and what once broke it."""
    folders = (HERE / "corpus" / target, HERE / "crashes" / target)
    return sorted(path for folder in folders for path in folder.glob("*"))


@pytest.mark.parametrize("target", TARGETS)
def test_python_targets_hold_over_the_corpus(target: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inputs(target)
    assert found
    for path in found:
        TARGETS[target](path.read_bytes())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY_BYTES_MAX


def test_native_targets_hold_over_the_corpus() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(
        [ROOT / ".ci" / "fuzz.sh", "replay"],
        check=False,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=160,
    )
    assert done.returncode == 0, done.stdout
    for target in set(CORPORA) - set(TARGETS):
        assert f"{target}: replayed {len(inputs(target))} inputs" in done.stdout


def test_the_seeds_hold_for_every_method_and_change_into_other_messages() -> None:
    """What `make fuzz` starts from besides the corpus: so a new method is fuzzed at once."""
    dice = random.Random(3)
    asked = set()
    for target in TARGETS:
        for _, data in CORPORA[target]():
            TARGETS[target](data)
    for _, frame in rpc_requests():
        asked.add(msgpack.unpackb(frame[LENGTH.size :])[1])
        for _ in range(10):
            TARGETS["request"](value_changed(frame[LENGTH.size :], dice))
    assert asked == set(METHODS)
    with pytest.raises(ValueError, match="no msgpack value"):
        value_changed(b"\xc1", dice)


def test_the_corpus_is_small() -> None:
    assert {path.name for path in (HERE / "corpus").iterdir()} == set(CORPORA)
    assert sum(path.stat().st_size for path in (HERE / "corpus").rglob("*")) < CORPUS_BYTES_MAX
