"""`ffs du`, `df`, `layout`, `quota` and `pin`: output and exit status."""

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


def test_quotas_are_set_shown_and_taken_away(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"x" * 1000, "sub/b": b"y"})
    set_ = ffs("quota", "set", path, "--bytes", "2K").out.splitlines()
    assert set_[0].split() == ["bytes", "of", "use", "files", "of", "use", "quota", "of"]
    assert set_[1].split() == ["1001", "B", "2.0", "KiB", "49%", "3", "any", "-", path]
    ffs("quota", "set", "--json", f"{path}/sub", "--files", "1", "--bytes", "5T")
    (got,) = ffs("quota", "get", "--json", f"{path}/sub/b").json()
    assert [quota["path"] for quota in got["quotas"]] == [f"{path}/sub", path]
    assert got["quotas"][0] == {
        "path": f"{path}/sub",
        "bytes_max": 5 << 40,
        "bytes_used": 1,
        "files_max": 1,
        "files_used": 1,
    }
    error = one_line(ffs("mkdir", f"{path}/sub/no", check=False), "mkdir", 1)
    assert "1 of 1 files are used, 1 more are wanted" in error
    report = ffs("df", "--json", f"{path}/sub").json()
    assert report["quotas"] == got["quotas"] and report["capacity_bytes"] > 0
    lines = ffs("df", "-h", path).out.splitlines()
    assert len(lines) == 4 and lines[1].split()[-1] == path and lines[2].startswith("capacity")
    assert ffs("quota", "rm", f"{path}/sub").out == ""
    assert ffs("quota", "rm", "--json", path).json() == [{"path": path, "quotas": []}]
    assert ffs("quota", "get", path).out == ""
    for code, argv in ((2, ()), (2, ("--bytes", "much")), (2, ("--files", "-1"))):
        one_line(ffs("quota", "set", path, *argv, check=False), "quota set", code)


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
