"""S17: what we are built from is little, named, and nothing that is not named gets in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ffs

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGE = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
EVERYONE = {"fsspec", "msgpack", "numpy"}
SHIPPED = ("ffs", "server", "client", "bench")
IMPORTED_AS = {
    "hdrh": "hdrhistogram",
    "torchdata": "torchdata",
    "litdata": "",  # peers of the benchmarks, measured if somebody has installed them
    "streaming": "",
    "array_record": "",
    "ffrecord": "",
}
"""Module -> distribution, where names differ; empty: found, or not, and never asked for."""
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "liburing.so.2"}
SYSTEM_LIBRARIES |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def names(requirements: list[str]) -> set[str]:
    """The distributions that requirements name, our own extras left out."""
    found = {re.split(r"[\[<>=!~; ]", one, maxsplit=1)[0].lower() for one in requirements}
    return found - {"ffs"}


EXTRAS = {extra: names(wanted) for extra, wanted in PROJECT["optional-dependencies"].items()}
ALL = [*PROJECT["dependencies"], *(r for e in PROJECT["optional-dependencies"].values() for r in e)]


def test_s17_every_install_needs_three() -> None:
    assert names(PROJECT["dependencies"]) == EVERYONE


def test_s17_servers_need_few_more() -> None:
    assert EXTRAS["server"] | EXTRAS["postgres"] <= {
        *("uvloop", "cryptography", "asyncpg", "prometheus-client")
    }


@pytest.mark.parametrize("requirement", sorted(set(ALL)))
def test_s17_each_comes_from_an_index_by_name_and_version(requirement: str) -> None:
    assert "@" not in requirement and "://" not in requirement
    assert requirement.startswith("ffs[") or re.search(r"[>=]=\s*\d", requirement), requirement


def test_s17_each_is_on_the_page_that_says_why() -> None:
    missing = [name for name in sorted(names(ALL)) if name not in PAGE]
    assert not missing


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_s17_nothing_is_imported_that_is_not_declared() -> None:
    known = {name.replace("-", "_") for name in names(ALL)} | {"ffs"} | sys.stdlib_module_names
    strangers: dict[str, str] = {}
    for folder in SHIPPED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for module in imported(path):
                if IMPORTED_AS.get(module, module).replace("-", "_") not in {*known, ""}:
                    strangers[module] = str(path.relative_to(ROOT))
    assert not strangers


@pytest.mark.parametrize("module", ["_reader", "_storage"])
def test_s17_native_modules_need_the_system_alone(module: str) -> None:
    (path,) = Path(ffs.__file__).parent.glob(f"{module}.*.so")
    said = subprocess.run(
        ["objdump", "-p", str(path)], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"^\s*NEEDED\s+(\S+)$", said, re.MULTILINE))
    assert needed and needed <= SYSTEM_LIBRARIES
