"""The wheel: what is in it, and that it works where the checkout cannot be seen.

`python -m tests.test_packaging` writes tests/data/wheel_files.txt anew after files came or went.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import ffs

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "data" / "wheel_files.txt"


def build_wheel(directory: Path) -> Path:
    """Build the wheel as pip does it, without touching the network."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "-C", f"build-dir={directory / 'build'}", "-w", str(directory), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        timeout=160,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


def file_list(wheel: Path) -> list[str]:
    """The sorted names in a wheel."""
    return sorted(name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its dependencies that knows nothing of the checkout."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        + ["--no-deps", "--no-index", str(wheel)],
        check=True,
        timeout=160,
    )
    (packages,) = home.glob("lib/python*/site-packages")
    # Dependencies are borrowed from the environment of the tests; a path in a .pth file is only a
    # path: the pointer to the checkout that lies there is not followed.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *argv: str) -> str:
    """Run a command of the clean environment, far from the checkout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FFS_"))}
    return subprocess.run(
        [str(python), *argv],
        check=True,
        cwd=python.parent,
        env=clean,
        stdout=subprocess.PIPE,
        text=True,
        timeout=160,
    ).stdout


def test_wheel_holds_exactly_what_the_list_says(wheel: Path) -> None:
    found, expected = file_list(wheel), GOLDEN.read_text().splitlines()
    assert found == expected, (
        f"more: {sorted(set(found) - set(expected))}, less: {sorted(set(expected) - set(found))}; "
        "if that is meant, run `python -m tests.test_packaging`"
    )


def test_wheel_is_one_for_all_pythons(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name


def test_wheel_installs_no_name_but_ours(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in file_list(wheel)}
    assert tops == {"ffs", f"ffs-{ffs.__version__}.dist-info"}


@pytest.mark.parametrize(
    "module",
    [
        "ffs.client.filesystem",
        "ffs.server.meta",
        "ffs.server.storage",
        "ffs.server.up",
        "ffs._reader",
        "ffs._storage",
        "ffs.cli",
    ],
)
def test_installed_module_is_imported_from_the_wheel(clean_python: Path, module: str) -> None:
    where = run(clean_python, "-c", f"import {module} as m; print(m.__file__)").strip()
    assert Path(where).is_relative_to(clean_python.parent.parent)


def test_installed_command_tells_its_version(clean_python: Path) -> None:
    assert run(clean_python.parent / "ffs", "--version") == f"ffs {ffs.__version__}\n"


def test_fsspec_finds_the_installed_protocol(clean_python: Path) -> None:
    code = "import fsspec; print(fsspec.get_filesystem_class('ffs').__name__)"
    assert run(clean_python, "-c", code) == "FFSFileSystem\n"


def test_importing_the_package_costs_nothing(clean_python: Path) -> None:
    code = "import sys; import ffs; print([m for m in sys.modules if m.startswith('ffs.')])"
    assert run(clean_python, "-c", code) == "[]\n"


def test_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ffs.__version__


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text("\n".join(file_list(build_wheel(Path(scratch)))) + "\n")
