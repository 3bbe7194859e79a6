"""Trees in, out and across: many files at once arrive whole, and failures leave nothing half."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback

from ffs.client import bulk, trees
from ffs.client.parallel import Stop, run_all
from ffs.errors import CancelledOperationError, NotFoundError

MIB = 1 << 20


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def tree(root: Path) -> dict[str, bytes]:
    """Make a local tree of many small files, some large ones, and an empty directory."""
    files = {f"d{i % 9}/e{i % 4}/f{i}": payload(i * 37 % 9_000, i) for i in range(700)}
    files |= {f"large{i}": payload((5 + i) * MIB + 3, i) for i in range(3)}
    files["none"] = b""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "empty").mkdir()
    return files


class Counting(Callback):  # type: ignore[misc]  # fsspec is untyped
    """What a progress bar hears of a tree: files, and the bytes of each."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Callback] = []

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        self.children.append(Callback())
        return self.children[-1]


def check_told(callback: Counting, files: dict[str, bytes]) -> None:
    assert callback.size == callback.value >= len(files)
    assert sum(child.value for child in callback.children) == sum(map(len, files.values()))
    assert all(child.value == child.size or child.size is None for child in callback.children)


def test_a_tree_goes_in_across_and_out(fs: Any, fs_dir: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    files = tree(source)
    up, down = Counting(), Counting()
    fs.put(f"{source}/", f"{fs_dir}/put/", recursive=True, callback=up)
    assert fs.cat(fs.find(f"{fs_dir}/put")) == {f"{fs_dir}/put/{n}": d for n, d in files.items()}
    assert fs.isdir(f"{fs_dir}/put/empty")
    check_told(up, files)
    fs.cp(f"{fs_dir}/put/", f"{fs_dir}/cp/", recursive=True)
    fs.rm(f"{fs_dir}/put", recursive=True)
    fs.get(f"{fs_dir}/cp/", f"{target}/", recursive=True, callback=down)
    found = {str(p.relative_to(target)): p for p in target.rglob("*") if p.is_file()}
    assert {name: p.read_bytes() for name, p in found.items()} == files
    assert (target / "empty").is_dir()
    check_told(down, files)


def test_layouts_and_modes_go_with_a_tree(fs: Any, fs_dir: str, tmp_path: Path) -> None:
    tree(tmp_path)
    fs.put(f"{tmp_path}/", f"{fs_dir}/x/", recursive=True, chunk_size_bytes=64 << 10)
    for name in ("large0", "d1/e1/f1"):
        fs.cat_file(f"{fs_dir}/x/{name}")
        assert fs.info(f"{fs_dir}/x/{name}")["chunk_size"] == 64 << 10
    with pytest.raises(FileExistsError):
        fs.put(f"{tmp_path}/", f"{fs_dir}/x/", recursive=True, mode="create")
    with pytest.raises(TypeError):
        fs.put(f"{tmp_path}/", f"{fs_dir}/x/", recursive=True, chunk_sise=1)


def test_what_is_missing_ends_a_get_and_leaves_nothing_half(
    fs: Any, fs_dir: str, tmp_path: Path
) -> None:
    fs.pipe({f"{fs_dir}/{i}": payload(5_000, i) for i in range(20)})
    sources = [*(f"{fs_dir}/{i}" for i in range(20)), f"{fs_dir}/nowhere"]
    with pytest.raises(NotFoundError):
        fs.get(sources, [str(tmp_path / Path(s).name) for s in sources])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == fs.cat_file(f"{fs_dir}/{path.name}")


def test_a_local_disk_that_fails_is_told(fs: Any, fs_dir: str, tmp_path: Path) -> None:
    fs.pipe({f"{fs_dir}/x/{i}": b"1" for i in range(20)})
    (tmp_path / "7").mkdir()
    with pytest.raises(IsADirectoryError):
        fs.get(f"{fs_dir}/x/", f"{tmp_path}/", recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.put([str(tmp_path / "nowhere")], [f"{fs_dir}/y"])


def test_small_files_that_change_under_a_get_are_one_or_the_other(
    fs: Any, fs_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails is read again file by file."""
    fs.pipe({f"{fs_dir}/x/{i}": payload(5_000, i) for i in range(9)})
    failed: list[int] = []
    read_ranges = fs.core.reader.read_ranges

    def fail_once(contents: Any, *rest: Any) -> int:
        if not failed:
            failed.append(len(contents))
            raise NotFoundError("made up")
        return int(read_ranges(contents, *rest))

    monkeypatch.setattr(fs.core.reader, "read_ranges", fail_once)
    fs.get(f"{fs_dir}/x/", f"{tmp_path}/", recursive=True)
    assert failed == [9]
    for i in range(9):
        assert (tmp_path / str(i)).read_bytes() == payload(5_000, i)


def test_memory_is_bounded_by_batches(
    fs: Any, fs_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "in")
    monkeypatch.setattr(trees, "BATCH_BYTES", 100_000)
    held: list[int] = []
    put_small = trees._put_small

    def watch(filesystem: Any, batch: Any, *rest: Any) -> None:
        held.append(sum(Path(source).stat().st_size for source, _ in batch))
        put_small(filesystem, batch, *rest)

    monkeypatch.setattr(trees, "_put_small", watch)
    fs.put(f"{tmp_path}/in/", f"{fs_dir}/", recursive=True)
    assert len(held) > 10 and max(held) <= 100_000


def test_the_first_error_ends_the_others() -> None:
    stop, begun, gate = Stop(), [], threading.Event()

    def work(index: int) -> None:
        begun.append(index)
        if index == 3:
            gate.set()
            raise ValueError("the third")
        gate.wait(10)
        if stop:
            raise CancelledOperationError("told to stop")

    with pytest.raises(ValueError, match="the third"):
        run_all((lambda i=i: work(i) for i in range(1000)), 4, stop)  # type: ignore[misc]
    assert stop and len(begun) < 20


def test_control_c_waits_for_nobody() -> None:
    stop, begun, gate, ended = Stop(), threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()
        ended.set()

    def source() -> Iterator[Callable[[], None]]:
        yield work
        begun.wait()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(source(), 1, stop)
    assert stop and not ended.is_set()
    gate.set()
    ended.wait()


def test_copies_in_a_tree_skip_what_went_meanwhile(fs: Any, fs_dir: str) -> None:
    fs.pipe({f"{fs_dir}/x/{i}": b"1" for i in range(4)})
    gone = [f"{fs_dir}/x/0", f"{fs_dir}/gone", f"{fs_dir}/x/1"]
    targets = [f"{fs_dir}/y/{i}" for i in range(3)]
    with pytest.raises(FileNotFoundError):
        fs.cp(gone, targets)
    fs.cp(gone, targets, on_error="ignore")
    assert fs.find(f"{fs_dir}/y") == [targets[0], targets[2]]


def test_what_is_named_last_stays(
    fs: Any, fs_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH_FILES", 1)
    monkeypatch.setattr(trees, "COPIES", 1)
    for sizes in ([1, 2, 3, 4], [5 * MIB, 1, 5 * MIB, 2], [1, 2, 5 * MIB]):
        data = [payload(size, i) for i, size in enumerate(sizes)]
        spelled = [f"{'/' * i}{fs_dir}/piped" for i in range(len(data))]
        fs.pipe(dict(zip(spelled, data, strict=True)))
        assert fs.cat_file(f"{fs_dir}/piped") == data[-1]
        local = [tmp_path / f"{len(data)}-{i}" for i in range(len(data))]
        for path, value in zip(local, data, strict=True):
            path.write_bytes(value)
        fs.put([*map(str, local)], [f"{fs_dir}/put"] * len(data))
        assert fs.cat_file(f"{fs_dir}/put") == data[-1]
        names = [f"{fs_dir}/{len(data)}-{i}" for i in range(len(data))]
        fs.put([*map(str, local)], names)
        fs.cp(names, [f"{fs_dir}/copied"] * len(data))
        assert fs.cat_file(f"{fs_dir}/copied") == data[-1]
        fs.get(names, [str(tmp_path / "got")] * len(data))
        assert (tmp_path / "got").read_bytes() == data[-1]


def test_who_wants_new_files_hears_of_a_name_given_twice(fs: Any, fs_dir: str) -> None:
    with pytest.raises(FileExistsError):
        fs.pipe({f"{fs_dir}/f": b"1", f"/{fs_dir}/f": b"2"}, mode="create")
