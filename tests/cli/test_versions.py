"""`ffs rm` into the trash, `ffs trash`, `snapshot` and `clone`: output, bytes and exit status."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cli.support import Cli, one_line

Place = Callable[..., str]


@pytest.fixture(autouse=True)
def no_trash_left(ffs: Cli) -> Iterator[None]:
    """The shared cluster's trash is empty before and after."""
    ffs("trash", "empty", "--all")
    yield
    ffs("trash", "empty", "--all")


def test_what_was_removed_is_listed_and_restored(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"first", "sub/b": b"second"})
    removed = ffs("rm", "-r", "--json", f"{path}/a", f"{path}/sub").json()
    assert removed["removed"] == [f"{path}/a", f"{path}/sub"]
    assert ffs("ls", path).out == ""
    listed = ffs("trash", "list", "--json").json()
    assert {one["entry"]: one["origin"] for one in listed} == dict(
        zip(removed["trash"], removed["removed"], strict=True)
    )
    assert {one["type"]: one["size"] for one in listed} == {"file": 5, "directory": 0}
    heading, *rows = ffs("trash", "list").out.splitlines()
    assert heading.split() == ["removed", "type", "path", "entry"] and len(rows) == 2
    assert ffs("cat", f"{removed['trash'][1]}/content/b").raw == b"second"
    assert ffs("trash", "restore", removed["trash"][1]).out == f"{path}/sub\n"
    done = ffs("trash", "restore", "--json", "--to", f"{path}/other", removed["trash"][0]).json()
    assert done == {"restored": [{"entry": removed["trash"][0], "path": f"{path}/other"}]}
    assert ffs("cat", f"{path}/sub/b", f"{path}/other").raw == b"secondfirst"
    assert ffs("trash", "list", "--json").json() == []


def test_restoring_replaces_nothing(ffs: Cli, place: Place) -> None:
    path = place(a=b"old")
    ffs("rm", f"{path}/a")
    ffs("cp", "-", f"ffs://{path}/a", stdin=b"new")
    (entry,) = [one["entry"] for one in ffs("trash", "list", "--json").json()]
    error = one_line(ffs("trash", "restore", entry, check=False), "trash restore", 1)
    assert "target exists" in error
    assert ffs("cat", f"{path}/a").raw == b"new"
    error = one_line(ffs("trash", "restore", f"{path}/a", check=False), "trash restore", 1)
    assert "`ffs trash list` shows them" in error
    two = ("trash", "restore", entry, entry, "--to", "/x")
    one_line(ffs(*two, check=False), "trash restore", 2)


def test_what_does_not_go_to_the_trash(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"x", "b": b"x", "d/f": b"x"})
    assert ffs("rm", "--no-trash", "--json", f"{path}/a").json()["trash"] == []
    assert "add -r" in one_line(ffs("rm", f"{path}/d", check=False), "rm", 1)
    ffs("rm", "-r", "--no-trash", f"{path}/d")
    (entry,) = ffs("rm", "--json", f"{path}/b").json()["trash"]
    assert ffs("rm", "-r", "--json", entry).json() == {"removed": [entry], "trash": []}
    assert ffs("trash", "list", "--json").json() == [] and ffs("ls", path).out == ""


def test_the_trash_is_emptied_by_age(ffs: Cli, place: Place) -> None:
    path = place(a=b"x", b=b"x")
    ffs("rm", f"{path}/a", f"{path}/b")
    assert ffs("trash", "empty", "--older-than", "1d", "--json").json() == {"removed": 0}
    assert ffs("trash", "empty", "--json").json() == {"removed": 2}
    assert ffs("trash", "empty").out == ""


def test_a_snapshot_reads_what_was_there(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"first", "sub/b": b"second"})
    assert ffs("snapshot", "create", path, "v1").out == f"{path}/.snapshots/v1\n"
    ffs("cp", "-", f"ffs://{path}/a", stdin=b"changed")
    ffs("rm", "-r", "--no-trash", f"{path}/sub")
    made = ffs("snapshot", "create", "--json", path, "v2").json()
    assert made == {
        "path": f"{path}/.snapshots/v2",
        "files": 1,
        "directories": 1,
        "symlinks": 0,
    }
    old = f"{path}/.snapshots/v1"
    assert ffs("cat", f"{old}/a", f"{old}/sub/b").raw == b"firstsecond"
    assert ffs("ls", path).out == "a\n" and ffs("ls", f"{path}/.snapshots").out == "v1/\nv2/\n"
    listed = ffs("snapshot", "list", "--json", path).json()
    assert [one["name"] for one in listed] == ["v1", "v2"]
    assert ffs("snapshot", "list", path).out.splitlines()[1].endswith(f"v1    {old}")
    assert ffs("verify", old).code == 0
    assert "read-only" in one_line(ffs("rm", f"{old}/a", check=False), "rm", 1)
    assert "snapshots" in one_line(ffs("rm", "-r", path, check=False), "rm", 1)
    for name in ("v1", "v2"):
        ffs("snapshot", "remove", path, name)
    one_line(ffs("snapshot", "remove", path, "v1", check=False), "snapshot remove", 1)
    assert ffs("snapshot", "list", "--json", path).json() == []


def test_a_pin_keeps_a_snapshot(ffs: Cli, place: Place) -> None:
    path = place(a=b"x")
    ffs("snapshot", "create", path, "v1")
    (pin,) = ffs("pin", "add", "--json", f"{path}/.snapshots/v1", "--owner", "run-7").json()
    error = one_line(ffs("snapshot", "remove", path, "v1", check=False), "snapshot remove", 1)
    assert "pinned by run-7" in error
    ffs("pin", "remove", str(pin["pin"]))
    assert ffs("snapshot", "remove", "--json", path, "v1").json() == {"removed": 2}


def test_a_clone_is_a_tree_of_its_own(ffs: Cli, place: Place) -> None:
    path = place(**{"d/a": b"first", "d/sub/b": b"second"})
    done = ffs("clone", "--json", f"{path}/d", f"{path}/new/c").json()
    assert done == {
        "source": f"{path}/d",
        "target": f"{path}/new/c",
        "files": 2,
        "directories": 2,
        "symlinks": 0,
    }
    ffs("cp", "-", f"ffs://{path}/new/c/a", stdin=b"changed")
    assert ffs("cat", f"{path}/d/a", f"{path}/new/c/sub/b").raw == b"firstsecond"
    again = ffs("clone", f"{path}/d", f"{path}/new/c", check=False)
    assert "exists" in one_line(again, "clone", 1)
