"""Links through the file system object: as os and fsspec's local file system have them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from ffs.errors import BadNameError, InvalidError, SymlinkLoopError


@pytest.fixture
def both(fs: Any, fs_dir: str, tmp_path: Path) -> list[tuple[Any, str]]:
    """The same tree here and on the local disk: files, a directory, links of every kind."""
    links = {
        "d/to-file": "file",
        "d/around": "../d/file",
        "d/up": "..",
        "broken": "nowhere",
        "loop-a": "loop-b",
        "loop-b": "loop-a",
    }
    local = LocalFileSystem(auto_mkdir=True)
    for side, root in (fs, fs_dir), (local, str(tmp_path)):
        side.pipe_file(f"{root}/d/file", b"content")
        side.mkdir(f"{root}/d/empty")
        link = fs.symlink if side is fs else os.symlink  # fsspec's makes targets absolute
        link(f"{root}/d", f"{root}/to-dir")
        for name, target in links.items():
            link(target, f"{root}/{name}")
    return [(fs, fs_dir), (local, str(tmp_path))]


PATHS = [
    "d",
    "d/file",
    "d/to-file",
    "to-dir",
    "to-dir/file",
    "to-dir/to-file",
    "to-dir/up/d/file",
    "d/around",
    "broken",
    "loop-a",
    "loop-a/x",
    "d/up",
    "d/file/x",
    "d/to-file/x",
    "nowhere",
    "n" * 256,
]


def test_looking_is_as_it_is_locally(both: list[tuple[Any, str]]) -> None:
    for path in PATHS:
        look(both, path)
        info(both, path)


def look(both: list[tuple[Any, str]], path: str) -> None:
    (fs, root), (_, local) = both
    here, there = f"{root}/{path}", f"{local}/{path}"
    assert fs.exists(here) == os.path.exists(there), path
    assert fs.lexists(here) == os.path.lexists(there), path
    assert fs.isfile(here) == os.path.isfile(there), path
    assert fs.isdir(here) == os.path.isdir(there), path
    assert fs.islink(here) == os.path.islink(there), path
    assert fs.realpath(here).removeprefix(root) == os.path.realpath(there).removeprefix(local), path


def info(both: list[tuple[Any, str]], path: str) -> None:
    (fs, root), (local_fs, local) = both
    outcomes: list[Any] = []
    for side, base in ((fs, root), (local_fs, local)):
        try:
            found = side.info(f"{base}/{path}")
        except OSError as error:
            outcomes.append(error.errno)
            continue
        size = found["size"] if found["type"] == "file" else 0
        held, name = found.get("destination", "").replace(base, ""), found["name"]
        outcomes.append((name.removeprefix(base), found["type"], size, found["islink"], held))
    assert outcomes[0] == outcomes[1], path


def same_outcome(both: list[tuple[Any, str]], do: Callable[[Any, str], Any]) -> Any:
    """Do something on both sides and compare what came of it, errors by their number."""
    outcomes: list[Any] = []
    for index, (fs, root) in enumerate(both):
        try:
            value = do(fs if index == 0 else os, root)
        except OSError as error:
            value = error.errno
        outcomes.append(value)
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


def test_mistakes_have_the_numbers_of_a_local_disk(both: list[tuple[Any, str]]) -> None:
    def same(name: str, *tails: str) -> int:
        found = same_outcome(
            both, lambda side, root: getattr(side, name)(*(f"{root}/{t}" for t in tails))
        )
        assert isinstance(found, int)
        return found

    assert same("readlink", "d/file") == errno.EINVAL
    assert same("readlink", "d") == errno.EINVAL
    assert same("readlink", "nowhere") == errno.ENOENT
    assert same("readlink", "loop-a/x") == errno.ELOOP
    assert same("link", "nowhere", "new") == errno.ENOENT
    assert same("link", "d", "new") == errno.EPERM
    assert same("link", "d/file", "d/empty") == errno.EEXIST
    assert same("link", "d/file", "broken") == errno.EEXIST
    assert same("rmdir", "to-dir") == errno.ENOTDIR
    assert same("rmdir", "d") == errno.ENOTEMPTY
    for target in ("file", "", "x" * 5_000):
        outcome = same_outcome(both, lambda side, root, t=target: side.symlink(t, f"{root}/broken"))
        assert outcome in (errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)
    for path in ("loop-a", "broken", "d/file/x", "to-dir"):
        read = same_outcome(both, lambda side, root, p=path: _read(side, f"{root}/{p}"))
        assert read in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def _read(side: Any, path: str) -> bytes:
    if side is os:
        return Path(path).read_bytes()
    data: bytes = side.cat_file(path)
    return data


def test_listings_show_links_and_walks_do_not_enter_them(both: list[tuple[Any, str]]) -> None:
    (fs, root), (local_fs, local) = both
    for path in ("", "/d", "/to-dir"):
        ours, theirs = fs.ls(root + path, detail=False), local_fs.ls(local + path, detail=False)
        assert [p.removeprefix(root) for p in ours] == sorted(p.removeprefix(local) for p in theirs)
    names = fs.find(root)
    assert [p.removeprefix(root) for p in names] == [
        p.removeprefix(local) for p in local_fs.find(local)
    ]
    assert [r for r, _, _ in fs.walk(root)] == [root, f"{root}/d", f"{root}/d/empty"]
    infos = {i["name"].removeprefix(f"{root}/"): i for i in fs.ls(root) + fs.ls(f"{root}/d")}
    kinds = {name: (i["type"], i["islink"], i["size"]) for name, i in infos.items()}
    assert kinds["d/to-file"] == kinds["d/around"] == ("file", True, 7)
    assert kinds["to-dir"] == kinds["broken"] == kinds["loop-a"] == ("link", True, 0)
    assert kinds["d"] == ("directory", False, 0) and kinds["d/file"] == ("file", False, 7)
    assert infos["to-dir"]["destination"] == f"{root}/d"
    assert infos["d/around"]["destination"] == "../d/file"
    assert infos["d/to-file"]["ino"] != infos["d/file"]["ino"]
    detail = fs.find(root, detail=True)
    assert all(infos[name.removeprefix(f"{root}/")] == info for name, info in detail.items())
    assert fs.find(f"{root}/to-dir") == [
        f"{root}/to-dir/{n}" for n in ("around", "file", "to-file", "up")
    ]
    assert "to-dir" in fs.tree(root)
    assert fs.glob(f"{root}/*/file") == [f"{root}/d/file"]


def test_what_is_done_to_a_link_is_done_to_the_right_one(both: list[tuple[Any, str]]) -> None:
    fs, root = both[0]
    fs.pipe_file(f"{root}/d/to-file", b"through")
    assert fs.cat_file(f"{root}/d/file") == b"through" and fs.islink(f"{root}/d/to-file")
    with fs.open(f"{root}/to-dir/new", "wb") as file:
        file.write(b"new")
    assert fs.cat_file(f"{root}/d/new") == b"new"
    fs.pipe_file(f"{root}/broken", b"made")
    assert fs.cat_file(f"{root}/nowhere") == b"made"
    fs.mv(f"{root}/d/to-file", f"{root}/moved")
    assert fs.readlink(f"{root}/moved") == "file" and not fs.exists(f"{root}/moved")
    fs.cp_file(f"{root}/to-dir/file", f"{root}/copied")
    fs.cp_file(f"{root}/broken", f"{root}/copied-2")
    assert fs.cat_file(f"{root}/copied-2") == b"made" and not fs.islink(f"{root}/copied-2")
    fs.rm_file(f"{root}/broken")
    assert fs.exists(f"{root}/nowhere")
    fs.rm(f"{root}/to-dir", recursive=True)
    assert fs.isdir(f"{root}/d") and not fs.lexists(f"{root}/to-dir")
    fs.rm(f"{root}/d", recursive=True)
    assert fs.isdir(root)


def test_hard_links_are_one_file(fs: Any, fs_dir: str) -> None:
    a, b = f"{fs_dir}/a", f"{fs_dir}/new/b"
    fs.pipe_file(a, b"1")
    fs.link(a, b)
    assert fs.info(a)["nlink"] == fs.info(b)["nlink"] == 2
    assert fs.info(a)["ino"] == fs.info(b)["ino"] and not fs.islink(b)
    fs.pipe_file(b, b"22")
    assert fs.cat_file(a) == b"22" and fs.info(a)["size"] == 2
    with fs.open(a, "ab") as file:
        file.write(b"3")
    assert fs.cat_file(b) == b"223"
    fs.truncate(b, 1)
    assert fs.cat_file(a) == b"2"
    fs.chmod(a, 0o600)
    assert fs.info(b)["mode"] & 0o7777 == 0o600
    fs.rm_file(a)
    assert fs.cat_file(b) == b"2" and fs.info(b)["nlink"] == 1
    with pytest.raises(FileNotFoundError):
        fs.cat_file(a)


def test_own_changes_are_seen_by_every_name_at_once(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/d/x", b"1")
    fs.pipe_file(f"{fs_dir}/e/x", b"other")
    fs.symlink("d", f"{fs_dir}/l")
    fs.symlink("d/x", f"{fs_dir}/m")
    names = [f"{fs_dir}/{n}" for n in ("d/x", "l/x", "m")]
    for step, (writer, data) in enumerate(zip(names, (b"22", b"333", b"4444"), strict=True)):
        assert [len(fs.cat_file(n)) for n in names] == [step + 1] * 3
        fs.pipe_file(writer, data)
        assert [fs.cat_file(n) for n in names] == [data] * 3
        assert [fs.info(n)["size"] for n in names] == [len(data)] * 3
    fs.rm_file(f"{fs_dir}/l")
    fs.symlink("e", f"{fs_dir}/l")
    assert fs.cat_file(f"{fs_dir}/l/x") == b"other"
    fs.rm_file(f"{fs_dir}/d/x")
    assert not fs.exists(f"{fs_dir}/m") and fs.lexists(f"{fs_dir}/m")


def test_trees_with_links_are_copied_as_they_are(fs: Any, fs_dir: str, tmp_path: Path) -> None:
    fs.pipe({f"{fs_dir}/x/d/file": b"content", f"{fs_dir}/outside": b"2"})
    links = {"to-dir": "d", "d/to-file": "file", "broken": "nowhere", "out": "../outside"}
    for name, target in links.items():
        fs.symlink(target, f"{fs_dir}/x/{name}")
    fs.symlink("x", f"{fs_dir}/l")
    for source, target in (("x", "copy"), ("l", "copy-2"), ("x", "copy")):
        fs.cp(f"{fs_dir}/{source}/", f"{fs_dir}/{target}/", recursive=True)
        assert {n: fs.readlink(f"{fs_dir}/{target}/{n}") for n in links} == links
        assert fs.isdir(f"{fs_dir}/{target}") and not fs.islink(f"{fs_dir}/{target}")
        assert fs.cat_file(f"{fs_dir}/{target}/to-dir/to-file") == b"content"
    with pytest.raises(FileNotFoundError):
        fs.get(f"{fs_dir}/x/", f"{tmp_path}/out/", recursive=True)
    fs.rm_file(f"{fs_dir}/x/broken")
    fs.get(f"{fs_dir}/x/", f"{tmp_path}/out/", recursive=True)
    assert (tmp_path / "out/d/to-file").read_bytes() == b"content"
    assert (tmp_path / "out/out").read_bytes() == b"2"
    assert list((tmp_path / "out/to-dir").iterdir()) == []


def test_urls_and_dots(fs: Any, fs_dir: str) -> None:
    with pytest.raises(BadNameError):  # which directory that is, is for realpath to say
        fs.exists(f"{fs_dir}/../x")
    fs.pipe_file(f"{fs_dir}/d/x", b"1")
    fs.symlink(fs.unstrip_protocol(f"{fs_dir}/d/x"), f"{fs_dir}/l")
    assert fs.readlink(f"{fs_dir}/l") == f"{fs_dir}/d/x" and fs.cat_file(f"{fs_dir}/l") == b"1"
    fs.symlink("./../d/./x", f"{fs_dir}/d/m")
    assert fs.cat_file(f"{fs_dir}/d/m") == b"1"
    assert fs.realpath(f"{fs_dir}/d/../d/./m") == f"{fs_dir}/d/x"
    fs.symlink("/../../..", f"{fs_dir}/root")
    assert fs.realpath(f"{fs_dir}/root") == "/" and fs.exists(f"{fs_dir}/root{fs_dir}/d/x")
    with pytest.raises(FileNotFoundError):
        fs.realpath(f"{fs_dir}/nowhere/x", strict=True)
    with pytest.raises(InvalidError):
        fs.readlink(f"{fs_dir}/d/x")
    fs.symlink("loop", f"{fs_dir}/loop")
    with pytest.raises(SymlinkLoopError):
        fs.realpath(f"{fs_dir}/loop", strict=True)
