"""What every command does alike: help, usage errors, no key, no server, a wrong key, --debug."""

from __future__ import annotations

import importlib
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ffs.cli import app
from ffs.cli.action import Action
from ffs.key import ClusterKey
from tests.cli.support import Cli, command, one_line


def actions() -> dict[str, Action]:
    """Every command by its full name: `ls`, `pin add`, ..."""
    found = {}
    for name in app.COMMANDS:
        module = importlib.import_module(f"ffs.cli.{name}")
        words: Mapping[str, Action] = module.ACTIONS
        found.update({f"{name} {word}".strip(): action for word, action in words.items()})
    return found


ACTIONS = actions()
ARGUMENTS = {
    "ls": ("/missing",),
    "tree": ("/missing",),
    "stat": ("/missing",),
    "cat": ("/missing",),
    "cp": ("ffs:///missing", "local"),
    "mv": ("/missing", "/other"),
    "ln": ("/missing", "/other"),
    "mkdir": ("/missing/below",),
    "rm": ("/missing",),
    "trash list": (),
    "trash restore": ("/.trash/0/missing",),
    "trash empty": (),
    "snapshot create": ("/missing", "v1"),
    "snapshot list": ("/missing",),
    "snapshot remove": ("/missing", "v1"),
    "clone": ("/missing", "/other"),
    "pack": ("ffs:///missing", "local"),
    "du": ("/missing",),
    "verify": ("/missing",),
    "pin add": ("/missing",),
    "pin list": (),
    "pin remove": ("999999",),
    "layout get": ("/missing",),
    "layout set": ("/missing", "--stripe", "1"),
    "quota get": ("/missing",),
    "quota set": ("/missing", "--files", "1"),
    "quota rm": ("/missing",),
    "trace read": ("/missing",),
    "status": (),
    "top": (),
    "doctor": (),
    "df": (),
    "fsck": (),
    "cluster status": (),
    "cluster add-node": (),
    "cluster drain": ("999999",),
    "cluster remove-node": ("999999",),
    "cluster rebalance": (),
    "cluster accept-loss": ("999999",),
    "auth user": ("remove", "999999"),
    "auth token": ("999999",),
    "auth revoke": ("999999",),
}
"""What each command that talks to a cluster is given here; what it names does not exist."""
FINDS_NOTHING = [name for name, argv in ARGUMENTS.items() if argv and name in ACTIONS]
OF_A_CLUSTER = [name for name, action in ACTIONS.items() if action.cluster]


def test_every_command_that_talks_to_a_cluster_is_tried() -> None:
    local = {"config", "version"}
    assert set(OF_A_CLUSTER) - local <= set(ARGUMENTS)


@pytest.mark.parametrize("name", ACTIONS)
def test_help_says_what_a_newcomer_needs(name: str, bare: Cli) -> None:
    out = bare(*name.split(), "--help").out
    assert bare("help", *name.split()).out == out
    assert out.startswith(f"usage: ffs {name} ") and "--debug" in out
    first = (ACTIONS[name].run.__doc__ or "").splitlines()[0]
    assert first in out
    assert f"example:\n  ffs {name.split()[0]}" in out
    assert ("--json" in out) == ACTIONS[name].reports
    assert max(map(len, out.splitlines())) <= 100


def test_overview_lists_every_command(bare: Cli) -> None:
    out = bare("--help").out
    assert bare("help").out == bare("-h").out == out
    assert all(f"  {name} " in out and text in out for name, text in app.COMMANDS.items())
    nothing = bare(check=False)
    assert (nothing.code, nothing.raw, nothing.err) == (2, b"", out)


def test_groups_say_what_there_is(bare: Cli) -> None:
    for group in [name for name in app.COMMANDS if name not in ACTIONS]:
        words = [name.split()[1] for name in ACTIONS if name.startswith(f"{group} ")]
        for argv in ((group, "--help"), ("help", group)):
            out = bare(*argv).out
            assert all(f"  {word} " in out for word in words)
        error = one_line(bare(group, check=False), group, 2)
        assert all(word in error for word in words)
        one_line(bare(group, "nonsense", check=False), group, 2)


def test_unknown_commands_are_told_the_nearest(bare: Cli) -> None:
    done = bare("lss", "/", check=False)
    assert (done.code, done.raw) == (2, b"") and "did you mean ls?" in done.err
    assert bare("zzz", check=False).err == "ffs: there is no command 'zzz' (see `ffs help`)\n"
    assert bare("--json", "ls", check=False).code == 2
    assert bare("help", "lss", check=False).code == 2


@pytest.mark.parametrize("name", ACTIONS)
def test_wrong_usage_is_one_line_and_status_2(name: str, bare: Cli) -> None:
    error = one_line(bare(*name.split(), "--nonsense", check=False), name, 2)
    assert f"(see `ffs help {name}`)" in error


@pytest.mark.parametrize("name", FINDS_NOTHING)
def test_what_is_not_there_is_one_line_and_status_1(name: str, ffs: Cli) -> None:
    done = ffs(*name.split(), *ARGUMENTS[name], check=False)
    error = one_line(done, name, 1) if name not in ("tree",) else done.err
    assert done.code == 1
    assert ("999999" if "999999" in ARGUMENTS[name] else "/missing") in error


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if n in ACTIONS])
def test_no_address_and_no_key_are_usage_errors(
    name: str, bare: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*name.split(), *ARGUMENTS[name])
    assert "FFS_URL" in one_line(bare(*argv, check=False), name, 2)
    monkeypatch.setenv("FFS_URL", "ffs://127.0.0.1:1")
    assert "FFS_KEY_FILE" in one_line(bare(*argv, check=False), name, 2)
    error = one_line(bare(*argv, "--key-file", str(tmp_path / "none"), check=False), name, 2)
    assert str(tmp_path / "none") in error


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Options that lead to a port where nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        ClusterKey.create(tmp_path / "some.key")
        yield (
            f"--url=ffs://127.0.0.1:{holder.getsockname()[1]}",
            f"--key-file={tmp_path / 'some.key'}",
        )


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if n in ACTIONS])
def test_no_server_is_one_line_and_status_1(name: str, bare: Cli, dead: tuple[str, str]) -> None:
    argv = (*name.split(), *ARGUMENTS[name], *dead, "--timeout", "0.05")
    address = dead[0].partition("//")[2]
    assert address in one_line(bare(*argv, check=False), name, 1)


@pytest.mark.parametrize("name", ["ls", "cp", "status"])
def test_wrong_key_is_one_line_and_status_1(name: str, ffs: Cli, tmp_path: Path) -> None:
    ClusterKey.create(tmp_path / "other.key")
    key = ("--key-file", str(tmp_path / "other.key"))
    assert "key" in one_line(ffs(name, *ARGUMENTS[name], *key, check=False), name, 1)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1e9"])
def test_timeout_is_a_number_of_seconds(text: str, bare: Cli) -> None:
    error = one_line(bare("ls", f"--timeout={text}", check=False), "ls", 2)
    assert "seconds above 0" in error


def test_debug_shows_the_traceback(bare: Cli, ffs: Cli) -> None:
    for argv, code in ((("ls", "/missing"), 1), (("config", "--set", "nonsense"), 2)):
        done = ffs(*argv, "--debug", check=False)
        assert done.code == code
        assert done.err.startswith("Traceback") and f"\nffs {argv[0]}: " in done.err


def test_relative_path_is_refused_with_a_hint(ffs: Cli) -> None:
    error = one_line(ffs("ls", "relative/path", check=False), "ls", 2)
    assert "write /path, ffs:///path or ffs://HOST:PORT/path" in error


def test_misspelt_key_is_one_line_with_the_nearest(ffs: Cli) -> None:
    error = one_line(ffs("ls", "--set", "client.stal_ms=1", check=False), "ls", 2)
    assert "did you mean client.stall_ms?" in error


@pytest.mark.parametrize("words", ["help", "config"])
@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_one_line_and_status_1(words: str, where: str) -> None:
    line = f"{shlex.join(command(*words.split()))} {where}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert done.stderr.startswith("ffs") and done.stderr.count("\n") == 1, done.stderr


def test_a_closed_standard_input_is_no_empty_file(ffs: Cli, fs_dir: str) -> None:
    line = f"{shlex.join(command('cp', '-', f'ffs://{fs_dir}/new'))} <&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "ffs cp: bad file descriptor\n")
    assert ffs("ls", fs_dir).out == ""


def test_errors_move_no_cursor(ffs: Cli) -> None:
    error = one_line(ffs("stat", "/\x1b[31mred", check=False), "stat", 1)
    assert "/\\x1b[31mred" in error and "\x1b" not in error
