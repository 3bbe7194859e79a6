"""The command line without a cluster: parsing, exit status, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import ffs
from ffs.cli import app
from ffs.errors import ConfigError, NotFoundError


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in app.COMMANDS:
        assert app.main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"usage: ffs {name}" in out and "--debug" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and summary in out for name, summary in app.COMMANDS.items())


def test_version_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ffs {ffs.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["ls", "--nonsense"], ["cp", "only-one"]])
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(argv) == app.EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


def test_version_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ffs"] == ffs.__version__ and facts["client_module"] == "yes"


def test_config_shows_what_was_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--json", "--set", "client.stall_ms=123"]) == 0
    assert json.loads(capsys.readouterr().out)["client"]["stall_ms"] == 123


def test_config_prints_toml_that_can_be_read_back(
    capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    import tomllib

    assert app.main(["config", "--set", "client.verify=false"]) == 0
    tables = tomllib.loads(capsys.readouterr().out)
    assert tables["client"]["verify"] is False and tables["storage"]["targets"] == []


def test_config_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--explain"]) == 0
    assert "`stall_ms`" in capsys.readouterr().out


def test_misspelt_key_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--set", "client.stal_ms=1"]) == app.EXIT_USAGE
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "did you mean client.stall_ms?" in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "--debug", "--set", "nonsense"]) == app.EXIT_USAGE
    assert "Traceback" in capsys.readouterr().err


def test_relative_path_is_refused_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["ls", "relative/path"]) == app.EXIT_USAGE
    assert "write /path, ffs:///path or ffs://HOST:PORT/path" in capsys.readouterr().err


def test_missing_address_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("FFS_URL", "FFS_KEY_FILE", "FFS_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    assert app.main(["stat", "/nowhere"]) == app.EXIT_USAGE
    err = capsys.readouterr().err
    assert err.startswith("ffs stat: ") and err.count("\n") == 1


def test_errors_are_described_in_one_line() -> None:
    ours = NotFoundError("no such name", hint="look again", path="/a")
    assert app.describe(ours) == "no such name [path=/a] (look again)"
    assert app.describe(FileNotFoundError(2, "No such file", "x")) == "no such file [path=x]"
    assert app.describe(ConfigError("bad")) == "bad"


def test_reader_that_goes_away_ends_the_command_quietly() -> None:
    code = "import sys; from ffs.cli.app import main; sys.exit(main(['config', '--explain'] ))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (app.EXIT_BROKEN_PIPE, b"")


def test_help_imports_no_extra() -> None:
    code = (
        "import sys; from ffs.cli.app import main; main(['cp', '--help']); main(['ls', '--help']);"
        "heavy = ('torch', 'pyarrow', 'rich', 'uvloop', 'ffs.server');"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    assert out.splitlines()[-1] == "[]"
