"""Which replica a range is read from, and how long one is waited for when others could answer.

Role: client/reader.py spreads every plan over a replicated cluster with THIS; client/settle.py
tells it how each node did. Pure but for the counters of bytes in flight that are read through
`load`: time comes from the injected clock, so tests/sim drives the same object.

The rules:
1. a batch is spread so that all its nodes should end together: fewer bytes go where more are in
   flight already, and where bytes took several times longer than elsewhere;
2. a node that stalled or could not be reached is doubted: nothing is read from it while another
   replica serves, until a probe, made beside the reads, has got through; probes grow rarer;
3. a call that lasts longer than all but about one in a hundred of its size is hedged: its last
   ranges are taken from their node and read from another, at most one range in twenty ever.

Threads: any; sums may miss an update of another thread's but for the hedges', which are exact.
Fork:    the child goes on with what is known, and a lock of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ffs.client import _fork
from ffs.client.layouts import Route
from ffs.seams import Clock

log = logging.getLogger("ffs.client.replicas")

Address = tuple[str, int]

PROBE_NS_MIN: Final = 1_000_000_000
PROBE_NS_MAX: Final = 30_000_000_000
"""The pause before a doubted node's first probe, doubled with each that fails, up to the second."""
HEDGE_SHARE: Final = 20
"""One hedged range is allowed for so many that were read."""
HEDGE_BURST_MAX: Final = 1_024
HEDGE_MS_MIN: Final = 5
"""Below this a call is late because a thread was not running, not because a node is slow."""
SLOW_FROM: Final = 4.0
"""A node is slow whose bytes take so many times longer than the fastest's: the fewer bytes a node
gets the worse this ratio looks, up to the number of nodes; only what is far off means something."""
SLOW_MAX: Final = 256.0
"""A slow node still gets a share now and then, or nobody would notice that it has recovered."""

LATE_FACTOR: Final = 8
"""A hedged node is taken to need so many times longer than it was waited for."""

_CALL_NS: Final = 100_000
_LEG_BYTES: Final = 64 << 10
"""What a call, or one connection's part of it, costs besides its bytes, when durations of calls of
different sizes are compared."""
_LATE_UP: Final = 1.5
_LATE_DOWN: Final = 0.996
"""Steps of the estimate: up when a call took longer, down when not; they balance at one in 100."""
_TURN: Final = 0.6180339887498949
_DOUBTED: Final = 1e-9
_LOADED: Final = 1e-6
_LATE_FIRST: Final = 30.0
_LATE_MAX: Final = 1e3


class Patience(NamedTuple):
    """How long one submission waits: see ffs._reader.read_batch."""

    stall_ms: Sequence[int]
    hedge_ms: int = 0
    hedge_ranges: int = 0


@dataclass(slots=True)
class ReadCounters:
    """What happened to ranges of replicated and other chains, since the file system was made.

    `docs/client.md` explains each; a range is counted once for each time that it happened to it.
    """

    ranges: int = 0
    failed_over: int = 0
    hedged: int = 0
    stalled: int = 0
    lost: int = 0
    unreachable: int = 0
    damaged: int = 0
    missing: int = 0
    doubts: int = 0
    probes: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return a copy by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(slots=True)
class _Doubt:
    """A node that did not answer. `reached`: a probe got through, so it is read from again."""

    pause_ns: int
    probe_at_ns: int
    reached: bool = False


class Replicas:
    """What one client knows of the nodes that it reads from.

    Args:    load: bytes in flight to an address; see the module's docstring for the rest
    """

    def __init__(self, clock: Clock, load: Callable[[Address], int]) -> None:
        self.counters = ReadCounters()
        self._clock = clock
        self._load = load
        self._doubts: dict[Address, _Doubt] = {}
        self._paces: dict[Address, float] = {}
        self._even = True  # nobody is doubted, nobody is slow: the usual case, for short cuts
        self._late = _LATE_FIRST
        self._allowance = 0.0
        self._turn = 0.0
        self._lock = threading.Lock()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Take a new lock: a thread that is not here may hold the old one."""
        self._lock = threading.Lock()

    # --- which one ------------------------------------------------------------------------------

    def spread(self, ops: npt.NDArray[Any], chains: npt.NDArray[np.uint32], route: Route) -> None:
        """Give each operation one of its chain's serving targets.

        Neighbours go to the same node as far as that evens out: it reads them in order.
        Shapes:  chains is (n,), the chain of each of the n operations
        """
        places = route.places(chains)
        counts = route.replica_counts[places]
        lengths = ops["length"].astype(np.float64)
        total = max(float(lengths.sum()), 1.0)
        bounds = self._shares(route, total)[route.replica_nodes[places]].cumsum(axis=1)
        # The middle of each operation in the batch, as a share of it; each batch starts elsewhere.
        middles = (lengths.cumsum() - lengths / 2) / total
        points = (middles + self._next_turn()) % 1.0 * bounds[:, -1]
        picks = np.minimum((points[:, None] >= bounds).sum(axis=1), np.maximum(counts, 1) - 1)
        chosen = route.replica_targets[places, picks]
        np.copyto(ops["target"], chosen, where=counts > 1)

    def choose(self, chain: int, route: Route) -> int:
        """Return one serving target of a chain, for a read of one range; NO_TARGET without any."""
        serving = route.serving.get(chain, ())
        if len(serving) < 2:
            return route.target(chain)
        if self._even:
            loads = [self._load_of(target, route) for target in serving]
            least = min(loads)
            idle = [t for t, load in zip(serving, loads, strict=True) if load == least]
            return idle[int(self._next_turn() * len(idle))]
        shares = self._shares(route, float(_LEG_BYTES))
        place = route.places(np.array([chain], dtype=np.uint32))[0]
        bounds = shares[route.replica_nodes[place]].cumsum()
        pick = int((self._next_turn() * bounds[-1] >= bounds).sum())
        return serving[min(pick, len(serving) - 1)]

    def order(self, serving: Sequence[int], route: Route) -> Sequence[int]:
        """Return targets with the trusted ones first."""
        if not self._doubts or len(serving) < 2:
            return serving
        return sorted(serving, key=lambda target: self._is_doubted(route.address(target)))

    def _load_of(self, target: int, route: Route) -> int:
        address = route.address(target)
        return self._load(address) if address is not None else 0

    def _next_turn(self) -> float:
        self._turn = turn = (self._turn + _TURN) % 1.0
        return turn

    def _shares(self, route: Route, total: float) -> npt.NDArray[np.float64]:
        """Return the bytes of a batch that each node should get, in the order of route.nodes, and
        0 for the place that no node has."""
        addresses = [route.address_of_node[node] for node in route.nodes]
        in_flight = [self._load(a) for a in addresses]
        if self._even and not any(in_flight):
            shares = np.ones(len(addresses) + 1)
            shares[-1] = 0.0
            return shares
        loads = np.array(in_flight, dtype=np.float64)
        slowness = self._slowness(addresses)
        trusted = np.array([not self._is_doubted(a) for a in addresses], dtype=np.bool_)
        shares = np.full(len(addresses) + 1, _LOADED * total)
        active = trusted.copy()
        while active.any():
            level = (total + loads[active].sum()) / (1 / slowness[active]).sum()
            bytes_each = level / slowness - loads
            if (bytes_each[active] > 0).all():
                shares[:-1][active] = bytes_each[active]
                break
            active &= bytes_each > 0
        shares[:-1][~trusted] = _DOUBTED * total
        shares[-1] = 0.0
        return shares

    def _slowness(self, addresses: Sequence[Address]) -> npt.NDArray[np.float64]:
        paces = [self._paces.get(a, 0.0) for a in addresses]
        best = min((p for p in paces if p > 0), default=0.0)
        if best <= 0:
            return np.ones(len(addresses))
        ratios = np.array(paces) / best
        return np.where(ratios > SLOW_FROM, np.minimum(ratios, SLOW_MAX), 1.0)

    # --- how they do ----------------------------------------------------------------------------

    def served(self, address: Address, length: int, busy_ns: int) -> None:
        """A node has sent `length` bytes of a call, which took it so long."""
        pace = busy_ns / (length + _LEG_BYTES)
        known = self._paces.get(address)
        self._paces[address] = pace if known is None else known + (pace - known) / 4
        if self._doubts and self._doubts.pop(address, None) is not None:
            log.info("replica_trusted", extra={"address": _text(address)})
        paces = self._paces.copy().values()
        self._even = not self._doubts and max(paces) <= SLOW_FROM * min(paces)

    def late(self, address: Address, length: int, busy_ns: int) -> None:
        """A node was hedged after so long; how much longer it would have taken nobody knows."""
        self.served(address, length, busy_ns * LATE_FACTOR)

    def failed(self, address: Address) -> None:
        """A node has stalled, or could not be reached: doubt it."""
        self._even = False
        now, doubt = self._clock.monotonic_ns(), self._doubts.get(address)
        if doubt is None:
            self.counters.doubts += 1
            self._doubts[address] = _Doubt(PROBE_NS_MIN, now + PROBE_NS_MIN)
            log.info("replica_doubted", extra={"address": _text(address)})
        elif doubt.reached or now >= doubt.probe_at_ns:
            self._doubt_more(doubt, now)

    def reached(self, address: Address) -> None:
        """A probe got through: read from the node again. It is trusted once it has served."""
        doubt = self._doubts.get(address)
        if doubt is not None:
            doubt.reached = True

    def forget(self, address: Address) -> None:
        """A node is not there any more: it has gone, or has another address."""
        self._doubts.pop(address, None)
        self._paces.pop(address, None)

    def due(self) -> list[Address]:
        """Return the doubted nodes that are to be probed now; each is named once."""
        if not self._doubts:
            return []
        now, due = self._clock.monotonic_ns(), []
        for address, doubt in list(self._doubts.items()):
            if not doubt.reached and now >= doubt.probe_at_ns:
                self._doubt_more(doubt, now)
                self.counters.probes += 1
                due.append(address)
        return due

    def _doubt_more(self, doubt: _Doubt, now_ns: int) -> None:
        doubt.pause_ns = min(doubt.pause_ns * 2, PROBE_NS_MAX)
        doubt.probe_at_ns = now_ns + doubt.pause_ns
        doubt.reached = False

    def _is_doubted(self, address: Address | None) -> bool:
        doubt = self._doubts.get(address) if address is not None else None
        return doubt is not None and not doubt.reached

    # --- hedging --------------------------------------------------------------------------------

    def hedge(self, length: int) -> tuple[int, int]:
        """Return after how many ms a call of `length` bytes is late, and how many of its ranges may
        be hedged then. They are set aside until `finished`. None are while a node is doubted: the
        other replica may be there."""
        with self._lock:
            ranges = 0 if self._doubts else int(self._allowance)
            self._allowance -= ranges
        late_ms = self._late * (_CALL_NS + length) / 1e6
        return max(HEDGE_MS_MIN, min(int(late_ms) + 1, 1 << 30)), ranges

    def finished(
        self, length: int, ranges: int, took_ns: int, *, hedged: int, set_aside: int
    ) -> None:
        """A call of so many bytes and ranges has ended, with so many hedged of those set aside."""
        with self._lock:
            self.counters.ranges += ranges
            self.counters.hedged += hedged
            self._allowance += set_aside - hedged + ranges / HEDGE_SHARE
            self._allowance = min(self._allowance, float(HEDGE_BURST_MAX))
        late = took_ns > self._late * (_CALL_NS + length)
        self._late = min(self._late * (_LATE_UP if hedged or late else _LATE_DOWN), _LATE_MAX)


def _text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
