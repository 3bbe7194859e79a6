"""The network between simulated hosts, and what a host is.

A `Host` is a process with a virtual event loop of its own for each life. Hosts exchange requests
and answers; each of these is a message that may be lost, delayed, repeated or overtaken by others,
as happens to frames of connections that break and are made anew. Links can be cut, in one direction
or in both, and clogged: what is sent over a clogged link arrives when it is free again. A host that
is not there refuses at once, as a kernel does; one that stands still keeps its callers waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from ffs.errors import DeadlineError, FFSError, UnavailableError
from ffs.rpc.addresses import Addresses
from ffs.seams import Clock
from ffs.wire.method import Method
from tests.sim.cluster.loop import VirtualLoop
from tests.sim.world import MS, NetworkFaults, Process, World

Answer = Callable[[Any], None]
META_PORT: Final = 7_000


class HostClock:
    """The clock of one host: its wall clock may be set, its monotonic one may not."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.jumped_ns = 0

    def monotonic_ns(self) -> int:
        """See `Clock`."""
        return self._clock.monotonic_ns()

    def wall_ns(self) -> int:
        """See `Clock`."""
        return self._clock.wall_ns() + self.jumped_ns


class Host(Process):
    """A process of the cluster: coroutines on a loop that ends with each life."""

    def __init__(self, world: World, fabric: Fabric, name: str) -> None:
        super().__init__(world, name)
        self.fabric = fabric
        self.clock = HostClock(world.clock)
        self.loop: VirtualLoop
        self.graves: list[VirtualLoop] = []
        self.frozen = False
        fabric.attach(self)

    def on_start(self) -> None:
        """Run `main` on a new loop."""
        chance = self.world.random
        self.loop = VirtualLoop(  # type: ignore[abstract]
            self.world, lambda: chance.randint(MS // 10, 3 * MS)
        )
        self.loop.enter(self._come_up)

    def _come_up(self) -> None:
        self.loop.create_task(self.main(), name=self.name)

    def on_crash(self) -> None:
        """Nothing of this life goes on."""
        self.fabric.reset(self)
        self.loop.die()
        self.graves.append(self.loop)
        self.frozen = False

    def freeze(self, until_ns: int) -> None:
        """Stand still for a while."""
        if self.alive and not self.frozen:
            self.world.log("freeze", self.name)
            self.frozen = True
            self.loop.freeze()
            self.world.after(max(0, until_ns - self.world.now_ns), self._thaw, self.incarnation)

    def _thaw(self, incarnation: int) -> None:
        if self.alive and self.frozen and self.incarnation == incarnation:
            self.world.log("thaw", self.name)
            self.frozen = False
            self.loop.thaw()

    def bury(self) -> None:
        """End for good; the host leaves nothing behind."""
        if self.alive:
            self.crash()
        for loop in self.graves:
            loop.bury()
        self.graves.clear()

    async def main(self) -> None:
        """What the process does."""

    def serve(self, source: str, request: Any, answer: Answer) -> None:
        """Take a request that came in; `answer` may be called once, or never."""


class Fabric:
    """Carries requests and answers between hosts."""

    def __init__(self, world: World, faults: NetworkFaults) -> None:
        self.faults = faults
        self.hosts: dict[str, Host] = {}
        self.cut: set[tuple[str, str]] = set()
        self.clogged_until_ns: dict[tuple[str, str], int] = {}
        self._open: dict[str, dict[asyncio.Future[Any], tuple[str, Answer]]] = {}
        self._world = world

    def attach(self, host: Host) -> None:
        """Make a host reachable by its name."""
        assert host.name not in self.hosts
        self.hosts[host.name] = host

    def heal(self) -> None:
        """Mend all links and lose nothing more."""
        self.cut.clear()
        self.clogged_until_ns.clear()
        self.faults = NetworkFaults.none()

    def connected(self, one: str, other: str) -> bool:
        """Whether messages pass in both directions."""
        return (one, other) not in self.cut and (other, one) not in self.cut

    def request(self, source: Host, target: str, request: Any) -> asyncio.Future[Any]:
        """Send a request. The future gets the answer, an UnavailableError if there is no process at
        the other end, or nothing ever."""
        future = source.loop.create_future()
        incarnation = source.incarnation

        def arrived(outcome: Any) -> None:
            if source.alive and source.incarnation == incarnation:
                source.loop.enter(_settle, future, outcome)

        def deliver() -> None:
            host = self.hosts[target]
            if not host.alive:
                if self.connected(source.name, target):
                    refused = UnavailableError("connection refused", server=target)
                    self._carry(target, source.name, arrived, refused)
                return
            life = host.incarnation

            def answer(outcome: Any) -> None:
                if host.alive and host.incarnation == life:
                    self._carry(target, source.name, arrived, outcome)

            host.loop.enter(host.serve, source.name, request, answer)

        self._open.setdefault(target, {})[future] = (source.name, arrived)
        future.add_done_callback(lambda done: self._open[target].pop(done, None))
        self._carry(source.name, target, deliver)
        return future

    def reset(self, host: Host) -> None:
        """A process died: its kernel tells those that wait for its answers, if that is alive."""
        waiting = self._open.pop(host.name, {})
        self._open[host.name] = {}
        if self._world.random.random() < 0.3:
            return  # the power failed
        for future, (source, arrived) in waiting.items():
            if not future.done():
                refused = UnavailableError("connection reset", server=host.name)
                self._carry(host.name, source, arrived, refused)

    def tell(self, source: Host, target: str, request: Any) -> None:
        """Send something that nobody answers."""

        def deliver() -> None:
            host = self.hosts[target]
            if host.alive:
                host.loop.enter(host.serve, source.name, request, _ignore)

        self._carry(source.name, target, deliver)

    def _carry(self, source: str, target: str, action: Callable[..., None], *args: Any) -> None:
        """Run an action at the other end of a link zero, one or two times."""
        chance, faults = self._world.random, self.faults
        link = (source, target)
        if link in self.cut or (faults.drop and chance.random() < faults.drop):
            self._world.log("lost", source, target)
            return
        copies = 2 if faults.duplicate and chance.random() < faults.duplicate else 1
        for _ in range(copies):
            spread_ns = faults.delay_ns_max - faults.delay_ns_min
            delay_ns = faults.delay_ns_min + int(chance.random() * spread_ns)
            if faults.stall and chance.random() < faults.stall:
                delay_ns += chance.randint(0, faults.stall_ns_max)
            free_ns = self.clogged_until_ns.get(link, 0)
            delay_ns = max(delay_ns, free_ns - self._world.now_ns + delay_ns)
            self._world.after(delay_ns, self._pass, link, action, args)

    def _pass(
        self, link: tuple[str, str], action: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        if link in self.cut:  # a partition loses what is on its way, too
            self._world.log("lost", *link)
        else:
            action(*args)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, FFSError):
        future.set_exception(outcome)
        future.exception()  # whoever gave up waiting does not look at it
    else:
        future.set_result(outcome)


def _ignore(outcome: Any) -> None:
    """Nobody waits for an answer."""


class SimRpc:
    """What `AsyncRpcClient` is to a server: calls to whichever metadata server answers."""

    def __init__(self, host: Host, servers: list[str]) -> None:
        self.addresses = Addresses([(server, META_PORT) for server in servers])
        self._host = host

    async def call(self, method: Method[Any, Any], request: Any, *, deadline_ms: int) -> Any:
        """Send one request and return its reply. Raises FFSError."""
        address = self.addresses.order[0]
        future = self._host.fabric.request(self._host, address[0], (method, request))
        try:
            async with asyncio.timeout(deadline_ms / 1e3):
                reply = await future
        except TimeoutError as error:
            self.addresses.failed(address)
            raise DeadlineError(f"{method.name} was not answered in time") from error
        except UnavailableError:
            self.addresses.failed(address)
            raise
        self.addresses.worked(address)
        return cast(Any, reply)

    async def close(self) -> None:
        """Nothing is held."""
