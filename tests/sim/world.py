"""A world in which time, chance, the network and crashes are all made by one seed.

Facts: events run one at a time in (time, order of scheduling); the clock jumps from one event to
the next, so hours cost nothing; nothing here reads a real clock or an unseeded random number. So
the same seed gives the same history; `World.digest()`, a hash over every logged event, proves it.

A part of the system under test is a `Process`: it gets messages and timers while it is alive,
loses its timers and its memory when it crashes, and finds what its disk kept when it starts again.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ffs.seams import Clock, Randomness

MS = 1_000_000
SECOND = 1_000 * MS
WALL_START_NS = 1_700_000_000 * SECOND


class Timer:
    """A scheduled event that can be taken back."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Do not run it."""
        self.cancelled = True


class VirtualClock:
    """The `ffs.seams.Clock` of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic_ns(self) -> int:
        """Nanoseconds since the world began."""
        return self._world.now_ns

    def wall_ns(self) -> int:
        """A wall clock that never jumps."""
        return WALL_START_NS + self._world.now_ns


class SeededRandomness:
    """The `ffs.seams.Randomness` of a world."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def token(self, n: int) -> bytes:
        """Return `n` seeded bytes."""
        return self._source.randbytes(n)

    def below(self, n: int) -> int:
        """Return a number in 0 .. n - 1."""
        return self._source.randrange(n)

    def u64(self) -> int:
        """Return 64 seeded bits."""
        return self._source.getrandbits(64)


class World:
    """Virtual time, a seed, an event queue, and the record of what happened.

    Args:    seed: decides everything; keep_history: hold the log's lines as well as their hash
    """

    def __init__(self, seed: int, *, keep_history: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_ns = 0
        self.clock: Clock = VirtualClock(self)
        self.randomness: Randomness = SeededRandomness(self.random)
        self.history: list[str] = []
        self._keep_history = keep_history
        self._hash = hashlib.blake2b(digest_size=16)
        self._queue: list[tuple[int, int, Timer, Callable[..., None], tuple[Any, ...]]] = []
        self.scheduled = 0
        """How many events there have been: what a seed costs, on any machine."""

    def after(self, delay_ns: int, action: Callable[..., None], *arguments: Any) -> Timer:
        """Run `action(*arguments)` once `delay_ns` of virtual time have passed."""
        assert delay_ns >= 0
        timer = Timer()
        self.scheduled += 1
        entry = (self.now_ns + delay_ns, self.scheduled, timer, action, arguments)
        heapq.heappush(self._queue, entry)
        return timer

    def log(self, event: str, *facts: object) -> None:
        """Record that something happened now."""
        line = f"{self.now_ns} {event} " + " ".join(map(str, facts))
        self._hash.update(line.encode() + b"\n")
        if self._keep_history:
            self.history.append(line)

    def digest(self) -> str:
        """Return the hash of all that was logged so far."""
        return self._hash.hexdigest()

    def step(self) -> bool:
        """Run the next event; False if there is none."""
        while self._queue:
            self.now_ns, _, timer, action, arguments = heapq.heappop(self._queue)
            if not timer.cancelled:
                action(*arguments)
                return True
        return False

    def run(self, until_ns: int) -> None:
        """Run all events up to `until_ns` and end there."""
        while self._queue and self._queue[0][0] <= until_ns:
            self.step()
        self.now_ns = max(self.now_ns, until_ns)

    def run_until(self, done: Callable[[], bool], limit_ns: int) -> bool:
        """Run until `done()`, at most to `limit_ns`; tell which of the two it was."""
        while not done():
            if not self._queue or self._queue[0][0] > limit_ns:
                return False
            self.step()
        return True


class Process:
    """Something that can crash and start again. `on_start` and `on_message` are its behaviour."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = False
        self.incarnation = 0

    def start(self) -> None:
        """Begin a life: memory is what `on_start` makes of what the disk kept."""
        assert not self.alive
        self.alive = True
        self.incarnation += 1
        self.world.log("start", self.name, self.incarnation)
        self.on_start()

    def crash(self) -> None:
        """End this life at once: its timers never fire, messages to it are lost."""
        if self.alive:
            self.world.log("crash", self.name)
            self.alive = False
            self.on_crash()

    def after(self, delay_ns: int, action: Callable[..., None], *arguments: Any) -> Timer:
        """Like `World.after`, for as long as this life lasts."""
        incarnation = self.incarnation

        def guarded() -> None:
            if self.alive and self.incarnation == incarnation:
                action(*arguments)

        return self.world.after(delay_ns, guarded)

    def on_start(self) -> None:
        """Set up the memory of a new life."""

    def on_crash(self) -> None:
        """Decide what the disk keeps."""

    def on_message(self, source: str, message: object) -> None:
        """Take a message that the network delivered."""


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """How bad the network is. Probabilities in 0 .. 1; delays are drawn evenly from their range."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_ns_min: int = 50_000
    delay_ns_max: int = 500_000
    stall: float = 0.0
    stall_ns_max: int = 0

    @staticmethod
    def none() -> NetworkFaults:
        """A network that loses nothing (but may still reorder)."""
        return NetworkFaults()


class Network:
    """Carries messages between processes, badly: each one is delayed on its own, so they overtake
    each other; some are lost, some come twice, some come very late; links can be cut."""

    def __init__(self, world: World, faults: NetworkFaults) -> None:
        self.faults = faults
        self._world = world
        self._processes: dict[str, Process] = {}
        self._cut: set[tuple[str, str]] = set()

    def attach(self, process: Process) -> None:
        """Make a process reachable by its name."""
        assert process.name not in self._processes
        self._processes[process.name] = process

    def cut(self, source: str, target: str) -> None:
        """Lose what `source` sends to `target` from now on (one way)."""
        self._cut.add((source, target))

    def heal(self) -> None:
        """Mend all links and lose nothing more."""
        self._cut.clear()
        self.faults = NetworkFaults.none()

    def send(self, source: str, target: str, message: object) -> None:
        """Send a message; it arrives zero, one or two times."""
        chance = self._world.random
        if (source, target) in self._cut or chance.random() < self.faults.drop:
            self._world.log("lost", source, target, message)
            return
        copies = 2 if chance.random() < self.faults.duplicate else 1
        for _ in range(copies):
            delay_ns = chance.randint(self.faults.delay_ns_min, self.faults.delay_ns_max)
            if chance.random() < self.faults.stall:
                delay_ns += chance.randint(0, self.faults.stall_ns_max)
            self._world.after(delay_ns, self._deliver, source, target, message)

    def _deliver(self, source: str, target: str, message: object) -> None:
        process = self._processes[target]
        if process.alive:
            process.on_message(source, message)
