"""Every error: a code of its own, an errno where it is an OSError, and a life across pickling."""

from __future__ import annotations

import errno
import os
import pickle
import re
from pathlib import Path

import pytest

from ffs import errors
from ffs.errors import FFSError, all_error_classes, error_class, error_from_wire

ROOT = Path(__file__).resolve().parents[2]
CLASSES = sorted(all_error_classes().values(), key=lambda cls: cls.code)


def subclasses(cls: type[FFSError]) -> set[type[FFSError]]:
    """All that derive from a class, however far."""
    direct = set(cls.__subclasses__())
    return direct.union(*(subclasses(c) for c in direct))


def test_every_class_is_registered() -> None:
    ours = {c for c in subclasses(FFSError) if c.__module__ == errors.__name__}
    assert ours == set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_oserrors_have_errno_and_path(cls: type[FFSError]) -> None:
    error = cls("it failed", path=b"/a\xff", offset=7)
    if isinstance(error, OSError):
        assert error.errno in errno.errorcode
        assert error.errno == (cls.errno_default or errno.EIO)
        assert error.strerror == "it failed"
        assert error.filename == os.fsdecode(b"/a\xff")
    assert "it failed" in str(error)
    assert "offset=7" in str(error)


@pytest.mark.parametrize("cls", [*CLASSES, FFSError], ids=lambda c: c.__name__)
def test_pickling_keeps_everything(cls: type[FFSError]) -> None:
    error = cls("it failed", hint="try again", path="/a", chunk=3)
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is cls
    assert (twin.message, twin.hint, twin.where) == (error.message, error.hint, error.where)
    assert str(twin) == str(error)
    assert getattr(twin, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_codes_lead_back_to_their_class(cls: type[FFSError]) -> None:
    error = error_from_wire(cls.code, "it failed", "", {"node": 4})
    assert type(error) is cls
    assert error.where == {"node": 4}


def test_unknown_code_is_the_base() -> None:
    assert error_class(65_000) is FFSError


@pytest.mark.parametrize("code", [0, 1, errors.NotFoundError.code])
def test_a_taken_code_is_refused(code: int) -> None:
    with pytest.raises(TypeError, match="taken"):
        type("Copycat", (FFSError,), {"code": code})


def test_a_class_without_a_code_is_refused() -> None:
    with pytest.raises(TypeError, match="no code"):
        type("Nameless", (errors.NotFoundError,), {})


def test_ordinary_code_catches_them() -> None:
    for cls, builtin in (
        (errors.NotFoundError, FileNotFoundError),
        (errors.ExistsError, FileExistsError),
        (errors.UnavailableError, ConnectionError),
        (errors.DeadlineError, TimeoutError),
        (errors.AuthError, PermissionError),
        (errors.ConfigError, ValueError),
        (errors.ClosedError, ValueError),
    ):
        with pytest.raises(builtin):
            raise cls("it failed")


def test_native_statuses_are_the_same_codes() -> None:
    header = (ROOT / "native/core/status.h").read_text()
    found = dict(re.findall(r"FFS_ERR_(\w+) = (\d+)", header))
    assert found
    by_name = {_c_name(c.__name__): c.code for c in CLASSES}
    for name, code in found.items():
        assert by_name[name] == int(code), name


def _c_name(name: str) -> str:
    stem = name.removesuffix("Error").removesuffix("Operation")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", stem).upper()


def test_documentation_lists_every_error() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), re.M)
    every: list[type[FFSError]] = [FFSError, *CLASSES]
    expected = sorted((c.code, c.__name__) for c in every)
    assert [(int(code), name) for code, name in rows] == expected


def test_documentation_tells_errno_and_retrying() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    for cls in CLASSES:
        row = next(line for line in text.splitlines() if f"`{cls.__name__}` |" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        is_os = issubclass(cls, OSError)
        name = errno.errorcode[cls.errno_default or errno.EIO] if is_os else ""
        assert cells[2] == name, row
        assert cells[3] == ("yes" if cls.retryable else ""), row
