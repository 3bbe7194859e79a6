"""`ffs cp`: in, out and within; what it keeps, what it leaves out, how it is taken up again."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.cli.support import Cli, one_line
from tests.harness import Cluster

Place = Callable[..., str]
OLD_NS = 1_500_000_000_123_456_789


def tree(root: Path) -> dict[str, bytes]:
    """Make a local tree; returns what its files hold by relative path."""
    contents = {f"many/{i:03}": os.urandom(i * 37) for i in range(60)}
    contents |= {"large": os.urandom(3 << 20), "empty": b"", "deep/er/file": b"x"}
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "hollow").mkdir()
    return contents


def read_tree(root: Path) -> dict[str, bytes]:
    """What the files below a local directory hold."""
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_tree_survives_the_way_in_and_out(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    contents = tree(tmp_path / "in")
    report = ffs("cp", "-r", "--json", "in", f"ffs://{fs_dir}/copy").json()
    assert report["files"] == len(contents)
    assert report["bytes"] == sum(map(len, contents.values()))
    assert report["skipped"] == 0 and report["seconds"] >= 0
    assert set(report) == {"files", "bytes", "skipped", "failures", "seconds"}
    assert ffs("cp", "-r", f"ffs://{fs_dir}/copy", "out").raw == b""
    assert read_tree(tmp_path / "out") == contents
    assert (tmp_path / "out" / "hollow").is_dir()


def test_within_a_cluster_no_byte_moves(
    ffs: Cli, place: Place, cluster: Cluster, tmp_path: Path
) -> None:
    data = os.urandom(5 << 20)
    path = place(**{"a": data, "dir/b": b"b"})
    before = ffs("status", "--json").json()["totals"]["blobs"]
    ffs("cp", f"ffs://{path}/a", f"{cluster.url}{path}/c")
    ffs("cp", "-r", f"ffs://{path}/a", f"ffs://{path}/dir", f"ffs://{path}/dir")
    assert ffs("status", "--json").json()["totals"]["blobs"] == before
    assert ffs("cat", f"{path}/c").raw == ffs("cat", f"{path}/dir/a").raw == data
    assert ffs("cat", f"{path}/dir/dir/b").raw == b"b"


def test_into_a_directory_and_without_clobbering(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    for name, data in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(data)
    ffs("cp", "a", "b", f"ffs://{fs_dir}")
    (tmp_path / "a").write_bytes(b"changed")
    done = ffs("cp", "-n", "--json", "a", f"ffs://{fs_dir}/a").json()
    assert (done["files"], done["skipped"]) == (0, 1)
    assert ffs("cat", f"{fs_dir}/a", f"{fs_dir}/b").raw == b"onetwo"
    ffs("cp", "a", f"ffs://{fs_dir}/a")
    assert ffs("cat", f"{fs_dir}/a").raw == b"changed"
    refused = one_line(ffs("cp", "a", "b", f"ffs://{fs_dir}/new", check=False), "cp", 1)
    assert "not a directory" in refused


def test_an_interrupted_copy_is_taken_up(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    contents = tree(tmp_path / "in")
    ffs("cp", "-r", "in/many", f"ffs://{fs_dir}/copy/many")  # so far it came
    again = ("cp", "-rnT", "--json", "in", f"ffs://{fs_dir}/copy")
    first, second = ffs(*again).json(), ffs(*again).json()
    assert (first["files"], first["skipped"]) == (len(contents) - 60, 60)
    assert (second["files"], second["skipped"]) == (0, len(contents))
    ffs("cp", "-r", f"ffs://{fs_dir}/copy", "out")
    (tmp_path / "out" / "large").unlink()
    back = ("cp", "-rnT", "--json", f"ffs://{fs_dir}/copy", "out")
    assert ffs(*back).json()["files"] == 1
    assert read_tree(tmp_path / "out") == contents
    assert not (tmp_path / "out" / "copy").exists()
    ffs("cp", "-rn", "in", f"ffs://{fs_dir}/copy")  # without -T it goes into what is there
    assert ffs("ls", "-d", f"{fs_dir}/copy/in/many").out == "many/\n"


def test_one_source_that_fails_does_not_keep_the_others_from_theirs(
    ffs: Cli, fs_dir: str, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    (tmp_path / "dir").mkdir()
    done = ffs("cp", "--json", "a", "missing", "dir", "b", f"ffs://{fs_dir}", check=False)
    assert done.code == 1 and done.err.count("\n") == 2
    assert "path=missing" in done.err and "path=dir" in done.err
    report = done.json()
    assert (report["files"], report["failures"]) == (2, 2)
    assert ffs("ls", fs_dir).out == "a\nb\n"


def test_errors_are_one_line(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    for code, argv in (
        (1, ("missing", f"ffs://{fs_dir}/x")),
        (1, (f"ffs://{fs_dir}/missing", "x")),
        (1, (f"ffs://{fs_dir}/*.no", "x")),
        (1, (str(tmp_path), f"ffs://{fs_dir}/x")),
        (1, (f"ffs://{fs_dir}", "x")),
        (1, (f"ffs://{fs_dir}/a", "missing/")),
        (2, ("a", "b")),
        (2, ("-j", "0", "a", f"ffs://{fs_dir}")),
        (2, ("-T", "a", "b", f"ffs://{fs_dir}")),
    ):
        error = one_line(ffs("cp", *argv, check=False), "cp", code)
        assert ("both local" in error) == (argv == ("a", "b"))
    assert not list(tmp_path.iterdir())


def test_standard_input_and_output(ffs: Cli, fs_dir: str) -> None:
    data = os.urandom(9 << 20)
    report = ffs("cp", "--json", "-", f"ffs://{fs_dir}/piped", stdin=data).json()
    assert (report["files"], report["bytes"]) == (1, len(data))
    assert ffs("cp", f"ffs://{fs_dir}/piped", "-").raw == data
    again = ffs("cp", "-n", "--json", "-", f"ffs://{fs_dir}/piped", stdin=b"other").json()
    assert (again["files"], again["skipped"]) == (0, 1)
    for argv in (
        ("-", f"ffs://{fs_dir}"),
        ("-", "local"),
        ("local", "-"),
        ("-", f"ffs://{fs_dir}/piped", f"ffs://{fs_dir}"),
        ("--json", f"ffs://{fs_dir}/piped", "-"),
    ):
        one_line(ffs("cp", *argv, check=False), "cp", 2)


def test_p_keeps_mode_and_time(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_bytes(b"x")
    os.chmod(tmp_path / "in/file", 0o640)
    os.chmod(tmp_path / "in", 0o750)
    for path in ("in/file", "in"):
        os.utime(tmp_path / path, ns=(OLD_NS, OLD_NS))
    ffs("cp", "-rp", "in", f"ffs://{fs_dir}/kept")
    ffs("cp", "-rp", f"ffs://{fs_dir}/kept", f"ffs://{fs_dir}/again")
    ffs("cp", "-rp", f"ffs://{fs_dir}/again", "out")
    ffs("cp", "-r", f"ffs://{fs_dir}/again", "fresh")
    for path, mode in (("out/file", 0o640), ("out", 0o750)):
        status = (tmp_path / path).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (mode, OLD_NS)
    assert (tmp_path / "fresh/file").stat().st_mtime_ns != OLD_NS


def test_symbolic_links_are_followed_and_loops_told(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/file").write_bytes(b"x")
    (tmp_path / "in/link").symlink_to("sub")
    ffs("cp", "-r", "in", f"ffs://{fs_dir}/whole")
    assert ffs("cat", f"{fs_dir}/whole/link/file").raw == b"x"
    (tmp_path / "in/sub/up").symlink_to("..")
    (tmp_path / "in/nowhere").symlink_to("missing")
    os.mkfifo(tmp_path / "in/pipe")
    done = ffs("cp", "-r", "in", f"ffs://{fs_dir}/partly", check=False)
    assert done.code == 1 and done.err.count("\n") == 4
    for reason in ("it is in: in/sub/up", "leads nowhere: in/nowhere", "file: in/pipe"):
        assert reason in done.err
    assert ffs("cat", f"{fs_dir}/partly/link/file").raw == b"x"


def test_from_one_cluster_to_another(
    ffs: Cli, place: Place, cluster: Cluster, new_cluster: Callable[..., Cluster]
) -> None:
    large = os.urandom(9 << 20)
    path = place(**{"tree/large": large, "tree/sub/small": b"small"})
    other = new_cluster()
    other.key_file.write_bytes(cluster.key_file.read_bytes())  # one key opens both
    other.restart("meta")
    other.restart("storage")
    ffs("cp", "-rp", f"ffs://{path}/tree", f"{other.url}/copy")
    assert ffs("cat", f"{other.url}/copy/large", f"{other.url}/copy/sub/small").raw == (
        large + b"small"
    )
    refused = ffs("mv", f"{other.url}/copy", f"ffs://{path}/moved", check=False)
    assert "within one cluster" in one_line(refused, "mv", 1)


def test_a_tree_is_not_walked_to_be_refused(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/broken").symlink_to("nowhere")
    assert "(add -r)" in one_line(ffs("cp", "tree", f"ffs://{fs_dir}/x", check=False), "cp", 1)
