"""What a remote procedure is, and the two answers that many of them share.

A message travels as a msgpack array of its fields in the order declared; a new field is added at
the end with a default, so that versions N and N-1 understand each other. Every mutation carries
`mutation`, 16 random bytes chosen once per logical operation and kept over retries: the server
applies it once and answers duplicates with the recorded result. Batch replies hold one entry per
request entry, in order: the value, or a `Fault`. What comes by the thousand is a named tuple
(ffs.rpc.schema says why), other messages are dataclasses.

Next hop: messages.py (clients), membership.py (storage daemons), maintenance.py, operators.py and
status.py (operators) declare the procedures by who calls them; the codec (ffs.rpc) validates by
these types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Req = TypeVar("Req")
Rep = TypeVar("Rep")


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Rep]):
    """One remote procedure: its name on the wire and the types of both directions."""

    name: str
    request: type[Req]
    reply: type[Rep]
    mutation: bool = False
    waits: bool = False
    """Whether its answer may take long without any work: nothing is set aside for it meanwhile, and
    it ends with the connection that it came by."""


@dataclass(frozen=True, slots=True)
class Empty:
    """A reply that says only that it was done."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one entry of a batch failed: an error code of ffs.errors and its message."""

    code: int
    message: str
