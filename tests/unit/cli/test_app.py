"""The command line without a cluster: versions, configuration, errors as one line."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib

import pytest

import ffs
from ffs import _reader
from ffs.cli import app, units
from ffs.cli.outcome import EXIT_BROKEN_PIPE, EXIT_USAGE, describe
from ffs.errors import ConfigError, NotFoundError


def test_version_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ffs {ffs.__version__}\n"


def test_version_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ffs"] == ffs.__version__ and facts["client_module"] == "yes"
    assert facts["crc32c"] == _reader.crc_implementation()
    assert app.main(["version"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(facts)


def test_config_shows_what_was_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--json", "--set", "client.stall_ms=123"]) == 0
    assert json.loads(capsys.readouterr().out)["client"]["stall_ms"] == 123


def test_config_prints_toml_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--set", "client.verify=false"]) == 0
    tables = tomllib.loads(capsys.readouterr().out)
    assert tables["client"]["verify"] is False and tables["storage"]["targets"] == []


def test_config_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--explain"]) == 0
    assert "`stall_ms`" in capsys.readouterr().out


def test_config_refuses_what_is_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--set", "nonsense"]) == EXIT_USAGE
    assert capsys.readouterr().err == "ffs config: --set 'nonsense' is not TABLE.KEY=VALUE\n"


def test_errors_are_described_in_one_line() -> None:
    ours = NotFoundError("no such name", hint="look again", path="/a")
    assert describe(ours) == "no such name [path=/a] (look again)"
    assert describe(FileNotFoundError(2, "No such file", "x")) == "no such file [path=x]"
    assert describe(ConfigError("bad\nand worse")) == "bad and worse"
    assert describe(OSError()) == "OSError"


def test_reader_that_goes_away_ends_the_command_quietly() -> None:
    code = "import sys; from ffs.cli.app import main; sys.exit(main(['config', '--explain'] ))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == EXIT_BROKEN_PIPE


def test_only_the_typed_command_is_imported() -> None:
    code = (
        "import sys; from ffs.cli.app import main; main(['version'])\n"
        "heavy = {'numpy', 'fsspec', 'rich', 'asyncio', 'ffs.cli.ls'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=30)


@pytest.mark.parametrize(
    ("text", "value"), [("65536", 65536), ("64K", 65536), ("4MiB", 4 << 20), ("1gb", 1 << 30)]
)
def test_sizes(text: str, value: int) -> None:
    assert units.size_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("2m", 120), ("12h", 43_200), ("7d", 604_800)]
)
def test_durations(text: str, value: int) -> None:
    assert units.duration_s(text) == value


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1E", "٣", "9" * 20])
def test_what_is_no_number_is_refused(text: str) -> None:
    for parse in (units.size_bytes, units.count, units.duration_s):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
