"""Links on the command line: `ffs ln`, how others show links, and what `cp` makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ffs.cli.entries import KEYS
from tests.cli.support import Cli, one_line

Place = Callable[..., str]


def test_ln_gives_a_file_one_more_name(ffs: Cli, place: Place) -> None:
    path = place(a=b"shared")
    made = ffs("ln", "--json", f"{path}/a", f"{path}/b").json()
    assert made == {"link": f"{path}/b", "source": f"{path}/a"}
    ffs("mkdir", f"{path}/dir")
    assert ffs("ln", f"{path}/a", f"{path}/dir").raw == b""
    assert ffs("cat", f"{path}/b", f"{path}/dir/a").raw == b"sharedshared"
    a, b = ffs("stat", "--json", f"{path}/a", f"{path}/b").json()
    assert a["ino"] == b["ino"] and a["nlink"] == b["nlink"] == 3
    one_line(ffs("ln", f"{path}/a", f"{path}/b", check=False), "ln", 1)
    one_line(ffs("ln", f"{path}/dir", f"{path}/c", check=False), "ln", 1)


def test_ln_s_makes_a_link_that_is_shown_as_one(ffs: Cli, place: Place) -> None:
    path = place(**{"dir/file": b"found"})
    made = ffs("ln", "-s", "--json", "dir", f"{path}/link").json()
    assert made == {"link": f"{path}/link", "destination": "dir"}
    ffs("ln", "-s", "nowhere", f"{path}/broken")
    ffs("ln", "-s", f"ffs://{path}/dir/file", f"{path}/absolute")
    assert ffs("cat", f"{path}/link/file", f"{path}/absolute").raw == b"foundfound"
    assert ffs("ls", path).out == "absolute@\nbroken@\ndir/\nlink@\n"
    assert ffs("ls", f"{path}/link").out == "file\n"
    (line,) = ffs("ls", "-ld", f"{path}/link").out.splitlines()
    assert line.startswith("l") and line.endswith(" link@ -> dir")
    assert "link@ -> dir\n" in ffs("tree", path).out
    one_line(ffs("cat", f"{path}/broken", check=False), "cat", 1)
    ffs("rm", f"{path}/link", f"{path}/broken")
    assert ffs("cat", f"{path}/dir/file").raw == b"found"


def test_stat_is_of_the_link_or_of_what_it_leads_to(ffs: Cli, place: Place) -> None:
    path = place(file=b"12345")
    ffs("ln", "-s", "file", f"{path}/link")
    (link,) = ffs("stat", "--json", f"{path}/link").json()
    assert (link["type"], link["destination"]) == ("link", "file")
    assert tuple(link) == (*KEYS, "destination")
    assert "  leads to  file\n" in ffs("stat", f"{path}/link").out
    followed = ffs("stat", "-L", "--json", f"{path}/link").json()
    assert followed == ffs("stat", "--json", f"{path}/file").json()


def test_cp_a_keeps_links_and_cp_r_follows_them(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    (tmp_path / "in/dir").mkdir(parents=True)
    (tmp_path / "in/dir/file").write_bytes(b"x")
    (tmp_path / "in/link").symlink_to("dir")
    (tmp_path / "in/broken").symlink_to("nowhere")
    for _ in range(2):  # over what is there, too
        ffs("cp", "-aT", "in", f"ffs://{fs_dir}/kept")
        ffs("cp", "-aT", f"ffs://{fs_dir}/kept", f"ffs://{fs_dir}/again")
    ffs("cp", "-a", f"ffs://{fs_dir}/again", "out")
    assert os.readlink(tmp_path / "out/link") == "dir"
    assert os.readlink(tmp_path / "out/broken") == "nowhere"
    assert (tmp_path / "out/dir/file").read_bytes() == b"x"
    done = ffs("cp", "-r", f"ffs://{fs_dir}/again", "followed", check=False)
    assert done.code == 1 and "leads nowhere" in done.err and done.err.count("\n") == 1
    assert (tmp_path / "followed/link").is_dir() and not (tmp_path / "followed/link").is_symlink()
    assert (tmp_path / "followed/link/file").read_bytes() == b"x"


def test_a_loop_in_the_cluster_is_told(ffs: Cli, place: Place, tmp_path: Path) -> None:
    path = place(**{"dir/file": b"x"})
    ffs("ln", "-s", "..", f"{path}/dir/up")
    done = ffs("cp", "-r", f"ffs://{path}/dir", "out", check=False)
    assert done.code == 1 and "left out, a link to a directory that it is in" in done.err
    assert (tmp_path / "out/file").read_bytes() == b"x"
