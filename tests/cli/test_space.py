"""`ffs du`, `df`, `layout` and `pin`: output and exit status."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.support import Cli, one_line

Place = Callable[..., str]


def test_du_adds_up(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"x" * 1000, "sub/b": b"y" * 500, "sub/deep/c": b"z" * 24})
    ffs("cp", f"ffs://{path}/a", f"ffs://{path}/copy")
    assert ffs("du", "--json", path).json() == [
        {
            "path": path,
            "size_bytes": 2524,
            "stored_bytes": 1524,
            "files": 4,
            "directories": 3,
            "symlinks": 0,
        }
    ]
    lines = ffs("du", "-d", "1", path, f"{path}/a").out.splitlines()
    assert [line.split() for line in lines] == [
        ["size", "stored", "files", "directories", "path"],
        ["2524", "1524", "4", "3", path],
        ["524", "524", "2", "2", f"{path}/sub"],
        ["1000", "1000", "1", "0", f"{path}/a"],
    ]
    assert "2.5 KiB" in ffs("du", "-h", path).out
    assert len(ffs("du", "--json", "-d", "9", path).json()) == 3


def test_df_counts_each_disk_once(ffs: Cli) -> None:
    report = ffs("df", "--json").json()
    assert set(report) == {
        *("capacity_bytes", "used_bytes", "available_bytes", "inodes", "replicas")
    }
    assert report["capacity_bytes"] >= report["used_bytes"] + report["available_bytes"] > 0
    heading, row = ffs("df").out.splitlines()
    assert heading.split() == ["capacity", "used", "available", "use", "inodes", "replicas"]
    assert row.split()[0] == str(report["capacity_bytes"]) and "%" in row
    assert "iB" in ffs("df", "-h").out


def test_layout_is_set_shown_and_inherited(ffs: Cli, fs_dir: str) -> None:
    ffs("mkdir", "-p", f"{fs_dir}/video/day")
    set_ = ffs("layout", "set", "--json", f"{fs_dir}/video", "--chunk-size", "4M").json()
    assert set_ == [
        {
            "path": f"{fs_dir}/video",
            "chunk_size_bytes": 4 << 20,
            "stripe": 0,
            "origin": f"{fs_dir}/video",
        }
    ]
    got = ffs("layout", "get", f"{fs_dir}/video/day", fs_dir).out.splitlines()
    assert got[0].split() == ["chunk", "size", "stripe", "said", "by", "path"]
    assert got[1].split() == ["4.0", "MiB", "all", f"{fs_dir}/video", f"{fs_dir}/video/day"]
    assert "the cluster's default" in got[2]
    ffs("cp", "-", f"ffs://{fs_dir}/video/day/file", stdin=b"x")
    (file,) = ffs("layout", "get", "--json", f"{fs_dir}/video/day/file").json()
    assert file["chunk_size_bytes"] == 4 << 20
    ffs("layout", "set", "--unset", f"{fs_dir}/video")
    (day,) = ffs("layout", "get", "--json", f"{fs_dir}/video/day").json()
    assert day["origin"] == "" and day["chunk_size_bytes"] != 4 << 20


def test_layouts_that_cannot_be_are_refused(ffs: Cli, fs_dir: str) -> None:
    for code, argv in (
        (2, ()),
        (2, ("--unset", "--stripe", "1")),
        (2, ("--chunk-size", "much")),
        (1, ("--chunk-size", "3M")),
        (1, ("--chunk-size", "1K")),
    ):
        one_line(ffs("layout", "set", fs_dir, *argv, check=False), "layout set", code)


def test_pins_are_added_listed_and_removed(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"x" * 1000, "sub/b": b"y"})
    (pin,) = ffs("pin", "add", "--json", path, "--ttl", "12h", "--owner", "job-17").json()
    assert set(pin) == {*("pin", "path", "owner", "created", "expires", "files", "stored_bytes")}
    assert (pin["path"], pin["owner"], pin["files"]) == (path, "job-17", 2)
    assert pin["stored_bytes"] == 1001
    assert 43_199 < pin["expires"] - pin["created"] < 43_201
    assert pin in ffs("pin", "list", "--json").json()
    text = ffs("pin", "add", f"{path}/a").out
    heading, row = text.splitlines()
    assert heading.split() == ["pin", "owner", "files", "stored", "expires", "path"]
    assert "@" in row and "never" in row and row.endswith(f"{path}/a")
    listed = [line.split() for line in ffs("pin", "list").out.splitlines()]
    assert row.split() in listed
    second = row.split()[0]
    assert ffs("pin", "remove", str(pin["pin"]), second).raw == b""
    assert not [p for p in ffs("pin", "list", "--json").json() if p["path"].startswith(path)]
    one_line(ffs("pin", "remove", second, check=False), "pin remove", 1)
    one_line(ffs("pin", "add", path, "--ttl", "0", check=False), "pin add", 2)
