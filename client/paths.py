"""Paths as they travel, and what a batch entry's fault means: small helpers of the metadata calls.

Role: client/calls.py, client/changes.py and client/meta.py use these; nothing here has state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ffs.errors import BadNameError, FFSError, error_class
from ffs.wire.method import Fault

T = TypeVar("T")
U = TypeVar("U")

BATCH_ENTRIES: Final = 2_048
"""Entries of one batch request; with the longest paths this stays under the RPC frame's limit."""


def encode(path: str) -> bytes:
    """Return a path as it travels; undecodable bytes of a name survive the round trip."""
    try:
        return path.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise BadNameError("the path is no text", path=path) from error


def decode(name: bytes) -> str:
    """Return a name that came: UTF-8, whatever this process has its local files in."""
    return name.decode(errors="surrogateescape")


def parent_of(path: str) -> str:
    """Return the directory that `path` is in; the root is its own."""
    return path.rpartition("/")[0] or "/"


def join(directory: str, name: str) -> str:
    """Return the path of a name in a directory."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def fault_error(fault: Fault, path: str) -> FFSError:
    """Return the error that a batch entry stands for."""
    return error_class(fault.code)(fault.message, path=path)


def with_errors(
    items: Sequence[U], answers: list[T | Fault], path_of: Callable[[U], str]
) -> list[T | FFSError]:
    """Return a batch's answers, with errors in the places of faults."""
    if Fault not in {*map(type, answers)} and len(items) == len(answers):
        return answers  # type: ignore[return-value]  # there are no faults, as in most batches
    return [
        fault_error(answer, path_of(item)) if isinstance(answer, Fault) else answer
        for item, answer in zip(items, answers, strict=True)
    ]


def batches(items: Sequence[T]) -> list[Sequence[T]]:
    """Cut what one call is asked for into requests of at most BATCH_ENTRIES."""
    return [items[i : i + BATCH_ENTRIES] for i in range(0, len(items), BATCH_ENTRIES)]
