"""What a forked child must forget: one registry, one hook.

Everything in the client that holds a socket, a lock, a thread or an identity registers here; after
`os.fork()` the child calls `after_fork_in_child` on each, in one place and before any user code.

Some facts about fork:
- only the forking thread exists in the child; a lock that another thread held stays locked forever,
  so locks are replaced, never acquired or released, in the child;
- descriptors are shared with the parent: the child closes its copies without a word on the wire (no
  shutdown, no abort message), or it would end the parent's conversations;
- the child is another client: sessions that the parent opened are the parent's to close.

Failure behaviour: a handler that raises is reported by the interpreter and the others still run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something with state that must not be shared between two processes."""

    def after_fork_in_child(self) -> None:
        """Drop inherited sockets and locks; runs alone, must not block or touch the network."""


_registry: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_generation = 0


def register(thing: ForkAware) -> None:
    """Have `thing.after_fork_in_child()` called in every child forked while it lives."""
    _registry.add(thing)


def generation() -> int:
    """Return how many forks lie between this process and the one that imported the module.

    Why: an object that remembers the generation it was made in knows whether it was inherited,
    also when the kernel reuses a process id.
    """
    return _generation


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1
    for thing in list(_registry):
        try:
            thing.after_fork_in_child()
        except Exception:  # noqa: BLE001 - one broken handler must not stop the others
            with contextlib.suppress(Exception):
                sys.excepthook(*sys.exc_info())


os.register_at_fork(after_in_child=_after_fork_in_child)
