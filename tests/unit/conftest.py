"""Fixtures of the unit tests: both event loops, and a key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

from ffs.handshake import ClusterKey

T = TypeVar("T")
RunAsync = Callable[[Callable[[], Awaitable[Any]]], Any]


def _on_asyncio(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(main(), debug=True)


def _on_uvloop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


@pytest.fixture(params=[_on_asyncio, _on_uvloop], ids=["asyncio-debug", "uvloop"])
def run_async(request: pytest.FixtureRequest) -> RunAsync:
    """Run a coroutine function to its end: once on asyncio in debug mode, once on uvloop."""
    runner: RunAsync = request.param
    return runner


@pytest.fixture
def key() -> ClusterKey:
    """A cluster key."""
    return ClusterKey(bytes(range(32)))
