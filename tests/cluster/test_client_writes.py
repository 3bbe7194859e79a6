"""Files being written that meet a signal, or are dropped; and trees copied in by `put`."""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback

from ffs.client import bulk
from ffs.client.calls import REQUESTS_AHEAD
from ffs.client.writer import FileWriter
from ffs.errors import ClosedError, ExistsError, NoSpaceError, UnavailableError

CHUNK = 64 << 10


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("options", [{"mode": "wt"}, {"mode": "wb", "compression": "gzip"}])
def test_a_dropped_wrapper_discards_too(fs: Any, fs_dir: str, options: dict[str, Any]) -> None:
    path = f"{fs_dir}/x"
    fs.pipe_file(path, b"old")
    file = fs.open(path, **options)
    file.write("half" if "t" in options["mode"] else b"half")
    with pytest.warns(ResourceWarning, match="not closed"):
        del file
    assert fs.cat_file(path) == b"old"


def test_a_write_that_a_signal_ends_is_whole_or_breaks_the_file(fs: Any, fs_dir: str) -> None:
    pieces = (payload(CHUNK + 7, 1), payload(2 * CHUNK, 2), payload(10, 3))
    source = FileWriter.__init__.__code__.co_filename

    def interrupted_at(line: int) -> tuple[bytes | None, bool]:
        """Raise KeyboardInterrupt at a line of the second write; return the file's bytes."""
        left = line

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != source:
                return None
            left -= event == "line"
            if left == 0:
                left = -1
                raise KeyboardInterrupt
            return trace

        path = f"{fs_dir}/{line}"
        file = fs.open(path, "wb", chunk_size_bytes=CHUNK)
        file.write(pieces[0])
        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            file.write(pieces[1])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(previous)
        try:
            file.write(pieces[2])
        except ClosedError:
            file.discard()
            return None, left > 0
        file.close()
        return fs.cat_file(path), left > 0

    line, ended = 0, False
    while not ended:
        line += 1
        found, ended = interrupted_at(line)
        assert found in (None, pieces[0] + pieces[2], b"".join(pieces))
    assert line > 30


def test_a_tree_of_small_files_is_put_in_batches(
    fs: Any, fs_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH_BYTES", 200_000)
    files = {f"{i % 3}/{i}": payload(i * 100, i) for i in range(100)}
    files["0/large"] = payload(bulk.SMALL_BYTES_MAX + 1)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    creates: list[int] = []
    create_each = fs.core.meta.create_each

    def counted(parts: Any) -> Any:
        for opened in create_each(parts):
            creates.append(len(opened))
            yield opened

    monkeypatch.setattr(fs.core.meta, "create_each", counted)
    callback = Callback()
    fs.put(str(tmp_path), f"{fs_dir}/to", recursive=True, callback=callback)
    assert fs.cat(f"{fs_dir}/to", recursive=True) == {
        f"{fs_dir}/to/{name}": data for name, data in files.items()
    }
    assert fs.isdir(f"{fs_dir}/to/empty") and sum(creates) == 101 and len(creates) < 10
    assert callback.value == callback.size == 101 + 5
    with pytest.raises(ExistsError):
        fs.put(str(tmp_path / "0/9"), f"{fs_dir}/to/0/9", mode="create")


@pytest.mark.parametrize(
    "error", [NoSpaceError("full"), UnavailableError("gone", chunk=0), KeyboardInterrupt()]
)
def test_batches_that_are_not_reached_leave_nothing_behind(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Names are reserved ahead of what is sent; all of them are free when it comes to an end."""
    monkeypatch.setattr(bulk, "BATCH_FILES", 10)
    files = {f"{fs_dir}/f{i:03}": payload(100, i) for i in range(100)}
    send, sent = bulk._send, []

    def send_two(writing: Any, batch: Any, sessions: Any) -> None:
        sent.append(len(batch))
        if len(sent) == 3:
            raise error
        send(writing, batch, sessions)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_send", send_two)
        with pytest.raises(type(error)):
            fs.pipe(files, mode="create")
    fs.core.keeper.tick()
    assert sent == [10, 10, 10]
    there = set(fs.ls(fs_dir, detail=False, refresh=True))
    assert there <= {*sorted(files)[:20]}
    if isinstance(error, NoSpaceError):
        assert len(there) == 20, "the batches before stay"
    fs.pipe({path: data for path, data in files.items() if path not in there}, mode="create")
    assert fs.cat(sorted(files)) == files


@pytest.mark.parametrize("error", [NoSpaceError("full"), KeyboardInterrupt()])
def test_batches_that_are_not_reached_are_not_even_begun(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """An error costs the sessions that were asked for ahead, not one for each file to come."""
    monkeypatch.setattr(bulk, "BATCH_FILES", 2)
    opened: list[int] = []
    count = fs.core.keeper.opened

    def noted(sessions: int = 1) -> None:
        opened.append(sessions)
        count(sessions)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(fs.core.keeper, "opened", noted)
    monkeypatch.setattr(bulk, "_send", fail)
    with pytest.raises(type(error)):
        fs.pipe({f"{fs_dir}/f{i:03}": b"x" for i in range(100)})
    assert len(opened) <= REQUESTS_AHEAD + 1
    fs.core.keeper.tick()


def test_a_server_that_is_gone_costs_the_connection_at_once(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a collector closes later takes a lock that its thread may hold."""
    monkeypatch.setattr(bulk, "BATCH_FILES", 2)

    def fail(*_: Any) -> None:
        raise UnavailableError("gone")

    monkeypatch.setattr(bulk, "_send", fail)
    rpc = fs.core.meta._rpc
    gc.disable()
    try:
        with pytest.raises(UnavailableError):
            fs.pipe({f"{fs_dir}/f{i:03}": b"x" for i in range(100)})
        assert {c for c in rpc._open if c._sock.fileno() != -1} == {*rpc._idle}
    finally:
        gc.enable()
    fs.core.keeper.tick()


def test_a_failed_get_unlinks_no_device(
    fs: Any, fs_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no")

    fs.pipe_file(f"{fs_dir}/x", b"data")
    monkeypatch.setattr(fs, "_copy_out", fail)
    os.symlink("/dev/null", tmp_path / "device")
    with pytest.raises(OSError, match="no"):
        fs.get_file(f"{fs_dir}/x", str(tmp_path / "device"))
    assert os.path.lexists(tmp_path / "device")
    with pytest.raises(OSError, match="no"):
        fs.get_file(f"{fs_dir}/x", str(tmp_path / "file"))
    assert not os.path.lexists(tmp_path / "file")
