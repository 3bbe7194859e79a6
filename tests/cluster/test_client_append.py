"""Appending: whole, in some order, visible at close, from many clients; and merged now and then."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ffs.client import append
from ffs.client.bulk import write_small
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import BusyError, FFSError, FileExpectedError, VersionError
from ffs.limits import SEGMENTS_COMPACT, SEGMENTS_MAX
from ffs.wire.messages import CreateMode
from tests.harness import Cluster

MIB = 1 << 20


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def pieces(fs: Any, path: str) -> int:
    return len(fs.core.meta.open(path).segments)


def add(fs: Any, path: str, data: bytes) -> None:
    with fs.open(path, "ab") as file:
        file.write(data)


def test_bytes_go_behind_what_is_there_when_the_file_is_closed(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/new/x"
    with fs.open(path, "ab") as file:
        assert file.tell() == 0 and not file.readable() and file.writable()
        file.write(b"one")
        assert file.tell() == file.size == 3 and not fs.exists(path)
    first, second = fs.open(path, "ab"), fs.open(path, "ab")
    assert first.tell() == second.tell() == 3
    first.write(b"-first")
    second.write(b"-second" * MIB)
    assert fs.cat_file(path) == b"one"
    second.close()
    assert fs.cat_file(path) == b"one" + b"-second" * MIB
    first.close()
    assert fs.cat_file(path) == b"one" + b"-second" * MIB + b"-first"
    with fs.open(path, "rb") as opened:
        add(fs, path, b"more")
        assert opened.read() == b"one" + b"-second" * MIB + b"-first"
    assert fs.info(path)["size"] == len(fs.cat_file(path)) == 3 + 7 * MIB + 6 + 4


def test_every_way_to_append(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    fs.pipe_file(path, b"a", mode="append")
    fs.pipe({path: b"b"}, mode="append")
    with fs.open(path, "a", encoding="utf-8") as file:
        file.write("ü\n")
    with fs.open(path, "at") as file:
        file.write("d")
    assert fs.cat_file(path) == "abü\nd".encode()
    for part in ("one ", "two"):
        with fs.open(f"{path}.gz", "ab", compression="infer") as file:
            file.write(part.encode())
    assert gzip.decompress(fs.cat_file(f"{path}.gz")) == b"one two"
    with fs.transaction, fs.open(path, "ab") as file:
        file.write(b"!")
    assert fs.cat_file(path).endswith(b"d!")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "UTF_32", "latin-1", None])
def test_text_is_marked_at_its_start_only(
    fs: Any, fs_dir: str, tmp_path: Path, encoding: str | None
) -> None:
    path, local = f"{fs_dir}/x", tmp_path / "x"
    for part in ("one ä\n", "two ö\n", "three\n"):
        with (
            fs.open(path, "a", encoding=encoding) as file,
            local.open("a", encoding=encoding) as same,
        ):
            file.write(part)
            same.write(part)
    assert fs.cat_file(path) == local.read_bytes()
    assert fs.read_text(path, encoding=encoding) == "one ä\ntwo ö\nthree\n"


def test_nothing_appended_changes_nothing_and_makes_what_is_missing(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    add(fs, path, b"")
    assert fs.cat_file(path) == b"" and pieces(fs, path) == 0
    add(fs, path, b"1")
    add(fs, path, b"")
    assert fs.cat_file(path) == b"1" and pieces(fs, path) == 1
    fs.touch(path, truncate=False)
    fs.touch(f"{fs_dir}/y", truncate=False)
    assert fs.cat_file(path) == b"1" and fs.cat_file(f"{fs_dir}/y") == b""


def test_mistakes(fs: Any, fs_dir: str) -> None:
    with pytest.raises(FileExpectedError):
        fs.open(fs_dir, "ab")
    fs.pipe_file(f"{fs_dir}/x", b"1")
    with pytest.raises(NotADirectoryError):
        fs.open(f"{fs_dir}/x/y", "ab")

    def fail() -> None:
        with fs.open(f"{fs_dir}/x", "ab") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert fs.cat_file(f"{fs_dir}/x") == b"1"


def test_many_appends_leave_few_segments_and_the_same_bytes(fs: Any, fs_dir: str) -> None:
    path, expected = f"{fs_dir}/x", b""
    sizes = random.Random(5)
    for step in range(60):
        data = payload(sizes.choice([1, 10, 5_000, 200_000]), step)
        add(fs, path, data)
        expected += data
        assert pieces(fs, path) <= SEGMENTS_COMPACT
        if step % 9 == 0:
            assert fs.cat_file(path) == expected
    with fs.open(path, "rb") as opened:
        before = fs.info(path)
        for _ in range(2 * SEGMENTS_COMPACT):
            add(fs, path, b"z")
        assert opened.read() == expected, "an open file does not see what is merged"
    assert fs.cat_file(path) == expected + b"z" * 2 * SEGMENTS_COMPACT
    assert fs.info(path)["ino"] == before["ino"]


def test_merging_changes_neither_times_nor_bytes(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    for step in range(5):
        add(fs, path, payload(300_000, step))
    fs.utime(path, ns=(5, 7))
    data, core = fs.cat_file(path), fs.core
    assert pieces(fs, path) == 5
    assert append.merge(core.writing, core.reader, path)
    assert pieces(fs, path) == 1 and fs.cat_file(path) == data
    assert fs.modified(path).timestamp() < 1
    assert not append.merge(core.writing, core.reader, path)
    assert not append.merge(core.writing, core.reader, f"{path}-nowhere")


def test_zeros_stay_zeros(fs: Any, fs_dir: str) -> None:
    path, hole = f"{fs_dir}/x", 1 << 40
    add(fs, path, b"head")
    fs.truncate(path, hole)
    for step in range(3 * SEGMENTS_COMPACT):
        add(fs, path, b"%02d" % step)
    assert fs.cat_file(path, hole - 3, None) == bytes(3) + b"".join(
        b"%02d" % step for step in range(3 * SEGMENTS_COMPACT)
    )
    assert fs.cat_file(path, 0, 6) == b"head\0\0" and pieces(fs, path) <= SEGMENTS_COMPACT


def client(cluster: Cluster) -> FFSFileSystem:
    return FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)


def test_appends_of_many_clients_come_whole_one_after_the_other(
    cluster: Cluster, fs: Any, fs_dir: str
) -> None:
    path, failures = f"{fs_dir}/log", []
    clients, rounds = 6, 25

    def work(number: int) -> None:
        mine = client(cluster)
        try:
            for step in range(rounds):
                add(mine, path, b"<%d:%d:" % (number, step) + b"x" * (number * 1_000) + b">\n")
        except Exception as error:  # told by the test
            failures.append(error)
        mine.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    seen: dict[int, list[int]] = {i: [] for i in range(clients)}
    for line in fs.cat_file(path).splitlines():
        number, step, rest = line[1:].split(b":")
        assert line[:1] == b"<" and rest == b"x" * (int(number) * 1_000) + b">"
        seen[int(number)].append(int(step))
    assert all(steps == list(range(rounds)) for steps in seen.values())


def test_a_merge_that_was_overtaken_is_left_to_the_next(
    cluster: Cluster, fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other, refused = f"{fs_dir}/x", client(cluster), []
    for _ in range(SEGMENTS_COMPACT):
        add(fs, path, b"1")
    rewrite = append._rewrite

    def overtaken(*args: Any) -> None:
        other.pipe_file(path, b"2", mode="append")
        try:
            rewrite(*args)
        except VersionError as error:
            refused.append(error)
            raise

    monkeypatch.setattr(append, "_rewrite", overtaken)
    other.core.meta.memory.forget()
    with monkeypatch.context() as patch:
        # The other client's own merge would win: let it see few segments.
        patch.setattr(
            append.AppendWriter, "publish", _publish_only(fs, append.AppendWriter.publish)
        )
        add(fs, path, b"3")
    assert len(refused) == 1
    assert fs.cat_file(path) == b"1" * SEGMENTS_COMPACT + b"32"
    monkeypatch.undo()
    add(fs, path, b"4")
    assert pieces(fs, path) <= SEGMENTS_COMPACT
    assert fs.cat_file(path) == b"1" * SEGMENTS_COMPACT + b"324"


def _publish_only(merging: Any, publish: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a publish that merges for one client only."""

    def wrapped(writer: Any) -> Any:
        if writer._writing is not merging.core.writing:
            writer._segments = -1_000
        return publish(writer)

    return wrapped


def test_a_failed_merge_does_not_fail_the_append(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"{fs_dir}/x"

    def fail(*_: Any) -> None:
        raise FFSError("made up")

    monkeypatch.setattr(append, "_rewrite", fail)
    for _ in range(SEGMENTS_COMPACT + 1):
        add(fs, path, b"1")
    assert fs.cat_file(path) == b"1" * (SEGMENTS_COMPACT + 1)
    assert [r.message for r in caplog.records if r.name == "ffs.client.append"] == ["merge_failed"]


def test_a_file_with_no_room_for_a_segment_is_merged_first(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refusals = f"{fs_dir}/x", [BusyError("full"), BusyError("full")]
    for _ in range(5):
        add(fs, path, b"1")
    close_many = fs.core.meta.close_many

    def busy(paths: Any, entries: Any) -> Any:
        if refusals and not entries[0].segments_replaced:
            return [refusals.pop()]
        return close_many(paths, entries)

    monkeypatch.setattr(fs.core.meta, "close_many", busy)
    with pytest.raises(BusyError), fs.open(path, "ab") as file:
        file.write(b"2")  # merged once; the second refusal finds nothing to merge
    assert not refusals and fs.cat_file(path) == b"11111" and pieces(fs, path) == 1
    add(fs, path, b"2")
    add(fs, path, b"3")
    refusals.append(BusyError("full"))
    add(fs, path, b"4")
    assert not refusals and fs.cat_file(path) == b"11111234" and pieces(fs, path) == 3


def test_a_file_of_as_many_segments_as_may_be(fs: Any, fs_dir: str) -> None:
    path, writing = f"{fs_dir}/x", fs.core.writing
    one = [(path, memoryview(b"1"))]
    write_small(writing, one * SEGMENTS_MAX, CreateMode.APPEND)
    assert pieces(fs, path) == SEGMENTS_MAX
    with pytest.raises(BusyError):
        write_small(writing, one, CreateMode.APPEND)
    assert fs.cat_file(path) == b"1" * SEGMENTS_MAX
    add(fs, path, b"2")
    assert fs.cat_file(path) == b"1" * SEGMENTS_MAX + b"2" and pieces(fs, path) == 2


APPENDER = """
import sys
from ffs.client.filesystem import FFSFileSystem
fs = FFSFileSystem()
for step in range(int(sys.argv[2]), 1_000_000):
    with fs.open(sys.argv[1], "ab") as file:
        file.write(b"%06d" % step * 1_000 + b"\\n")
    print(step, flush=True)
"""


def test_a_killed_appender_leaves_whole_appends(cluster: Cluster, fs: Any, fs_dir: str) -> None:
    path, first = f"{fs_dir}/x", 0
    for acknowledged in (SEGMENTS_COMPACT + 3, 2 * SEGMENTS_COMPACT + 1):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDER, path, str(first)],
            stdout=subprocess.PIPE,
            env={**os.environ, **cluster.environment},
        )
        assert process.stdout is not None
        for _ in range(acknowledged):
            last = int(process.stdout.readline())
        process.kill()
        last = max([last, *map(int, process.communicate()[0].split())])
        fs.invalidate_cache()  # what was read in the round before may be remembered for a second
        lines = fs.cat_file(path).splitlines()
        assert lines == [b"%06d" % step * 1_000 for step in range(len(lines))]
        assert len(lines) in (last + 1, last + 2), "the last one may have been under way"
        first = len(lines)
