"""Many pieces of memory into one file: chunks are cut over their borders, nothing else moves."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from ffs.client import writer as module
from ffs.client.buffers import spanning_view
from ffs.wire.messages import CreateMode

CHUNK = 64 << 10


def test_spanning_view_reaches_every_piece() -> None:
    pieces = [np.full(n, n, dtype=np.uint8).data for n in (7, 0, 100, 3)]
    span, places = spanning_view(pieces)
    for piece, place in zip(pieces, places, strict=True):
        assert span[place : place + len(piece)] == piece
    span[places[2]] = 1
    assert pieces[2][0] == 1


@pytest.mark.parametrize("seed", range(3))
def test_pieces_become_one_file(
    fs: Any, fs_dir: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(module, "SEND_BYTES_MAX", 4 * CHUNK)
    sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 9 * CHUNK + 5]
    writer = fs._writer(f"{fs_dir}/f", CreateMode.REPLACE, chunk_size_bytes=CHUNK)
    expected = b""
    for _ in range(6):
        pieces = [dice.randbytes(dice.choice(sizes)) for _ in range(dice.randrange(5))]
        expected += b"".join(pieces)
        if dice.random() < 0.3:
            writer.write(b"".join(pieces))
        else:
            assert writer.writev(pieces) == sum(map(len, pieces))
    writer.seal()
    writer.publish()
    assert fs.cat_file(f"{fs_dir}/f") == expected


def test_chunks_inside_a_piece_are_sent_from_where_they_are(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = module.Writing.send

    def spy(self: Any, ops: Any, data: memoryview, paths: Any) -> None:
        base = np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]
        sent.extend((base + ops["source_offset"].astype(np.int64)).tolist())
        send(self, ops, data, paths)

    monkeypatch.setattr(module.Writing, "send", spy)
    arrays = [np.arange(4 * CHUNK + 10, dtype=np.uint8) for _ in range(3)]
    writer = fs._writer(f"{fs_dir}/f", CreateMode.REPLACE, chunk_size_bytes=CHUNK)
    writer.writev(array.data for array in arrays)
    writer.seal()
    writer.publish()
    starts = [array.__array_interface__["data"][0] for array in arrays]
    inside = sum(
        any(s <= at < s + a.nbytes for s, a in zip(starts, arrays, strict=True)) for at in sent
    )
    assert len(sent) == 13 and inside == 4 + 3 + 3, "two chunks lie over a border, one is the rest"
    assert fs.cat_file(f"{fs_dir}/f") == b"".join(array.tobytes() for array in arrays)
