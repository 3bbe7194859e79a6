"""Commands on names and files: their output and their exit status."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from ffs.cli.entries import KEYS
from tests.cli.support import Cli, one_line
from tests.harness import Cluster

Place = Callable[..., str]


# --- ls, stat, tree, cat --------------------------------------------------------------------------


def test_ls_lists_in_name_order(ffs: Cli, fs_dir: str) -> None:
    ffs("mkdir", "-p", f"{fs_dir}/dir/sub", f"{fs_dir}/dir/aaa")
    assert ffs("ls", f"{fs_dir}/dir").out == "aaa/\nsub/\n"
    assert ffs("ls", "-d", f"{fs_dir}/dir").out == "dir/\n"
    assert ffs("ls", "-d", "/").out == "/\n"
    two = ffs("ls", f"{fs_dir}/dir", f"{fs_dir}/dir/sub").out
    assert two == f"{fs_dir}/dir:\naaa/\nsub/\n\n{fs_dir}/dir/sub:\n"
    assert ffs("ls", "-R", f"{fs_dir}/dir").out == (
        f"{fs_dir}/dir:\naaa/\nsub/\n\n{fs_dir}/dir/aaa:\n\n{fs_dir}/dir/sub:\n"
    )


def test_ls_long_shows_mode_size_and_time(ffs: Cli, place: Place) -> None:
    path = place(file=b"x" * 1536)
    (line,) = ffs("ls", "-l", path).out.splitlines()
    mode, size, date, time, name = line.split()
    assert (mode, size, name) == ("-rw-r--r--", "1536", "file")
    assert len(date) == 10 and len(time) == 8
    assert " 1.5 KiB " in ffs("ls", "-lh", f"{path}/file").out


def test_ls_json_has_the_documented_keys(ffs: Cli, place: Place) -> None:
    path = place(file=b"12345")
    (entry,) = ffs("ls", "--json", path).json()
    assert tuple(entry) == KEYS
    assert (entry["name"], entry["type"], entry["size"]) == (f"{path}/file", "file", 5)
    assert isinstance(entry["mtime"], float) and isinstance(entry["ino"], int)
    assert ffs("ls", "--json", path, f"{path}/file").json() == [entry, entry]


def test_one_path_that_fails_does_not_keep_the_others_from_theirs(ffs: Cli, place: Place) -> None:
    path = place(a=b"a", b=b"b")
    for command, out in (("ls", b"a\nb\n"), ("cat", b"ab"), ("stat", None), ("rm", b"")):
        done = ffs(command, f"{path}/a", f"{path}/missing", f"{path}/b", check=False)
        assert done.code == 1 and done.err.count("\n") == 1
        assert done.err.startswith(f"ffs {command}: ") and f"{path}/missing" in done.err
        if out is not None:
            assert done.raw.replace(f"{path}/a:\n".encode(), b"").startswith(out[:1])
    assert ffs("ls", path).out == ""


def test_patterns_are_expanded_in_the_cluster(ffs: Cli, place: Place) -> None:
    path = place(**{"a1.txt": b"1", "a2.txt": b"2", "b": b"3"})
    assert ffs("cat", f"{path}/a?.txt").raw == b"12"
    assert ffs("ls", f"{path}/*").out == "a1.txt\na2.txt\nb\n"
    error = one_line(ffs("cat", f"{path}/*.nothing", check=False), "cat", 1)
    assert "nothing matches the pattern" in error
    ffs("rm", f"{path}/a*")
    assert ffs("ls", path).out == "b\n"
    ffs("rm", "-f", f"{path}/a*")
    ffs("mkdir", f"{path}/a")
    refused = one_line(ffs("rm", f"{path}/*", check=False), "rm", 1)
    assert "add -r" in refused and ffs("ls", path).out == "a/\n"


def test_a_name_that_looks_like_a_pattern_means_itself(ffs: Cli, place: Place) -> None:
    path = place(**{"a[1]": b"odd", "a1": b"plain"})
    assert ffs("cat", f"{path}/a[1]").raw == b"odd"
    ffs("mv", f"{path}/a[1]", f"{path}/a*")
    ffs("rm", f"{path}/a*")
    assert ffs("ls", path).out == "a1\n"


def test_stat_shows_attributes(ffs: Cli, place: Place) -> None:
    path = place(f=b"12345")
    (found,) = ffs("stat", "--json", f"{path}/f").json()
    assert (found["name"], found["size"], found["type"]) == (f"{path}/f", 5, "file")
    assert tuple(found) == KEYS
    assert ffs("stat", "-L", "--json", f"{path}/f").json() == [found]
    text = ffs("stat", f"{path}/f").out
    assert text.startswith(f"{path}/f\n")
    assert "  size      5 (5 B)\n" in text and "  mode      0644 (-rw-r--r--)\n" in text
    assert "  type      directory\n" in ffs("stat", "/").out


def test_tree_draws_what_lies_below(ffs: Cli, place: Place) -> None:
    path = place(**{"sub/deep/x": b"12", "sub/y": b"3", "z": b""})
    assert ffs("tree", "-s", path).out.splitlines() == [
        path,
        "├── sub/",
        "│   ├── deep/",
        "│   │   └── x (2)",
        "│   └── y (1)",
        "└── z (0)",
        "",
        "2 directories, 3 files",
    ]
    assert ffs("tree", "-L", "1", "-d", path).out.splitlines()[1:] == [
        "└── sub/",
        "",
        "1 directory, 0 files",
    ]
    entries = ffs("tree", "--json", path).json()
    assert [(e["depth"], e["name"].removeprefix(path)) for e in entries] == [
        (0, ""),
        (1, "/sub"),
        (2, "/sub/deep"),
        (3, "/sub/deep/x"),
        (2, "/sub/y"),
        (1, "/z"),
    ]
    assert set(entries[0]) == {"depth", *KEYS}


def test_cat_writes_files_and_standard_input(ffs: Cli, place: Place) -> None:
    path = place(a=b"one", b=b"\xff\x00two")
    done = ffs("cat", f"{path}/b", "-", f"ffs://{path}/a", stdin=b"between")
    assert done.raw == b"\xff\x00twobetweenone"
    assert "is a directory" in one_line(ffs("cat", path, check=False), "cat", 1)


def test_cat_has_no_json(ffs: Cli, place: Place) -> None:
    error = one_line(ffs("cat", "--json", f"{place(a=b'x')}/a", check=False), "cat", 2)
    assert "--json" in error


def test_names_of_any_bytes_are_printed_as_they_are(ffs: Cli, fs_dir: str) -> None:
    name = b"\xff\xe4".decode(errors="surrogateescape")
    ffs("mkdir", f"{fs_dir}/{name}", f"{fs_dir}/zwölf")
    assert ffs("ls", fs_dir).raw == "zwölf/\n".encode() + b"\xff\xe4/\n"
    listed = ffs("ls", "--json", fs_dir).json()
    assert [entry["name"] for entry in listed] == [f"{fs_dir}/zwölf", f"{fs_dir}/{name}"]


# --- mkdir, rm, mv --------------------------------------------------------------------------------


def test_mkdir_says_what_is_wrong(ffs: Cli, fs_dir: str) -> None:
    assert ffs("mkdir", f"{fs_dir}/one").raw == b""
    for path in (f"{fs_dir}/one", f"{fs_dir}/no/parent"):
        error = one_line(ffs("mkdir", path, check=False), "mkdir", 1)
        assert path.rsplit("/", 1)[0] in error
    assert "(add -p)" in error
    ffs("mkdir", "-p", f"{fs_dir}/one")


def test_rm_needs_r_for_directories_and_f_for_nothing(ffs: Cli, fs_dir: str) -> None:
    ffs("mkdir", "-p", f"{fs_dir}/dir/sub")
    assert "add -r" in one_line(ffs("rm", f"{fs_dir}/dir", check=False), "rm", 1)
    ffs("rm", "-r", f"{fs_dir}/dir")
    one_line(ffs("rm", f"{fs_dir}/dir", check=False), "rm", 1)
    ffs("rm", "-f", f"{fs_dir}/dir")
    assert "root" in one_line(ffs("rm", "-r", "/", check=False), "rm", 1)


def test_mv_renames_and_moves_into(ffs: Cli, place: Place) -> None:
    path = place(f=b"f", e=b"e")
    ffs("mkdir", f"{path}/dir")
    ffs("mv", f"{path}/f", f"{path}/g")
    ffs("mv", f"{path}/g", f"{path}/e", f"{path}/dir")
    assert ffs("cat", f"{path}/dir/g", f"{path}/dir/e").raw == b"fe"
    one_line(ffs("mv", f"{path}/f", f"{path}/h", check=False), "mv", 1)
    ffs("mkdir", f"{path}/x", f"{path}/y")
    refused = one_line(ffs("mv", f"{path}/x", f"{path}/y", f"{path}/no", check=False), "mv", 1)
    assert "not a directory" in refused


def test_changes_are_reported_as_json(ffs: Cli, fs_dir: str) -> None:
    made = ffs("mkdir", "--json", f"{fs_dir}/a", f"{fs_dir}/b").json()
    assert made == {"made": [f"{fs_dir}/a", f"{fs_dir}/b"]}
    moved = ffs("mv", "--json", f"{fs_dir}/a", f"{fs_dir}/b").json()
    assert moved == {"moved": [{"source": f"{fs_dir}/a", "target": f"{fs_dir}/b/a"}]}
    removed = ffs("rm", "-rf", "--json", f"{fs_dir}/b", f"{fs_dir}/missing").json()
    (entry,) = removed.pop("trash")
    assert entry.startswith("/.trash/0/") and removed == {"removed": [f"{fs_dir}/b"]}


def test_the_cluster_may_be_named_in_the_path(
    bare: Cli, cluster: Cluster, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("--key-file", str(cluster.key_file))
    bare("mkdir", *key, f"{cluster.url}{fs_dir}/here")
    assert bare("ls", *key, "--url", cluster.url, fs_dir).out == "here/\n"
    monkeypatch.setenv("FFS_KEY_FILE", str(cluster.key_file))
    assert bare("ls", f"{cluster.url}{fs_dir}").out == "here/\n"


def test_a_file_of_many_pieces_comes_out_of_cat_whole(ffs: Cli, place: Place) -> None:
    data = bytes(range(256)) * 40_000
    path = place(large=data)
    assert hashlib.sha256(ffs("cat", f"{path}/large").raw).digest() == hashlib.sha256(data).digest()
