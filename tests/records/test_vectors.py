"""The files in tests/data/records: read as docs/records.md says, and written again byte for byte.

`python -m tests.records.test_vectors` writes those of our own container anew, after its layout was
changed on purpose; FFRecord's follow from that format's rules alone.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import ffs.records
from tests.records.samples import ffrecord_file

DATA = Path(__file__).resolve().parents[1] / "data" / "records"


class Vector(NamedTuple):
    """How a file came to be: lengths of the samples of each time that it was written to."""

    writes: list[list[int]]
    alignment: int = 1


OURS = {
    "ours-none.ffr": Vector([[]]),
    "ours-one-length.ffr": Vector([[5, 5, 5]]),
    "ours-mixed.ffr": Vector([[0, 1, 5, 40, 0]]),
    "ours-aligned.ffr": Vector([[3, 70, 0, 8]], 64),
    "ours-one-length-aligned.ffr": Vector([[9, 9, 9]], 16),
    "ours-appended.ffr": Vector([[2, 2], [1, 0, 3], [7]], 8),
}
THEIRS = {
    "ffrecord-none.ffr": [],
    "ffrecord-one-empty.ffr": [0],
    "ffrecord-mixed.ffr": [0, 1, 5, 40, 3],
    "ffrecord-old.ffr": [4, 4],
}


def samples_of(lengths: list[int], first: int = 0) -> list[bytes]:
    """Byte k of sample i is (16 i + k) mod 256."""
    return [
        bytes((16 * number + k) % 256 for k in range(length))
        for number, length in enumerate(lengths, first)
    ]


def write_ours(path: Path, vector: Vector) -> None:
    done = 0
    for lengths in vector.writes:
        how = {"mode": "a"} if path.exists() else {"alignment": vector.alignment}
        with ffs.records.create(str(path), **how) as writer:  # type: ignore[arg-type]
            for sample in samples_of(lengths, done):
                writer.append(sample)
        done += len(lengths)


@pytest.mark.parametrize("name", OURS)
def test_our_container(name: str, tmp_path: Path) -> None:
    write_ours(tmp_path / name, OURS[name])
    assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()
    lengths = [length for write in OURS[name].writes for length in write]
    with ffs.records.open(str(DATA / name)) as records:
        assert [bytes(sample) for sample in records.read(range(len(records)))] == samples_of(
            lengths
        )
        records.validate()


@pytest.mark.parametrize("name", THEIRS)
def test_ffrecord(name: str, tmp_path: Path) -> None:
    samples, old = samples_of(THEIRS[name]), "old" in name
    assert ffrecord_file(samples, old=old) == (DATA / name).read_bytes()
    with ffs.records.open(str(DATA / name)) as records:
        assert [bytes(sample) for sample in records.read(range(len(records)))] == samples
        records.validate()
    path = tmp_path / name
    with ffs.records.create(str(path), count=len(samples), format="ffrecord") as writer:
        for sample in samples:
            writer.append(sample)
    assert path.read_bytes() == ffrecord_file(samples)


def test_every_file_is_a_vector() -> None:
    assert sorted(path.name for path in DATA.iterdir()) == sorted([*OURS, *THEIRS])
    assert all(a != b for a, b in pairwise(sorted(p.read_bytes() for p in DATA.iterdir())))


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name, vector in OURS.items():
        (DATA / name).unlink(missing_ok=True)
        write_ours(DATA / name, vector)
    for name, lengths in THEIRS.items():
        (DATA / name).write_bytes(ffrecord_file(samples_of(lengths), old="old" in name))
