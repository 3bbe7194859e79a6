"""A client that enters lines into a book one by one, each retried until its budget is over.

Used by the scenarios of mutations: one server (`mutations`), several (`several_servers`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ffs.client.retry import Action, RetryPolicy
from ffs.errors import OK, InvalidError, UnavailableError
from tests.sim.chain_of_one import Violation
from tests.sim.world import MS, SECOND, Network, Process, World

CLIENTS = 4
OPERATIONS = 12
LINES = 30
BUDGET_NS = 2 * SECOND
ATTEMPT_NS = 100 * MS


@dataclass(frozen=True, slots=True)
class Request:
    """Enter `line` for the logical operation `operation`; `attempt` tells replies apart."""

    client: str
    operation: int
    attempt: int
    mutation: bytes
    line: int

    @property
    def hash(self) -> bytes:
        """What `request_hash` is to the real server: all but the attempt."""
        return b"%d" % self.line


@dataclass(frozen=True, slots=True)
class Reply:
    """The status and, for OK, the number of the entry."""

    operation: int
    attempt: int
    status: int
    entry: int


class Client(Process):
    """Does one operation after the other; `server` is whom it asks, unless a subclass chooses."""

    def __init__(self, world: World, network: Network, name: str, server: str = "") -> None:
        super().__init__(world, name)
        self.network = network
        self.server = server
        self.policy = RetryPolicy(20, 200, world.randomness)
        self.finished = 0
        self._mutation = b""
        self._line = 0
        self._attempt = 0
        self._rounds = 0
        self._deadline_ns = 0
        self._clashes = False

    def on_start(self) -> None:
        """Begin."""
        self._next()

    @property
    def done(self) -> bool:
        """Whether all operations have ended, one way or another."""
        return self.finished >= OPERATIONS

    def _next(self) -> None:
        if self.done:
            return
        # Now and then a client is so wrong as to use its last id for another request.
        self._clashes = (
            self._mutation != b"" and not self._clashes and self.world.random.random() < 0.1
        )
        if self._clashes:
            self._line = (self._line + 1) % LINES
        else:
            self._mutation = self.world.randomness.token(16)
            self._line = self.world.random.randrange(LINES)
        self._rounds = 0
        self._deadline_ns = self.world.now_ns + BUDGET_NS
        self._send()

    def _send(self) -> None:
        self._attempt += 1
        request = Request(self.name, self.finished, self._attempt, self._mutation, self._line)
        self.network.send(self.name, self.choose_server(), request)
        self.after(ATTEMPT_NS, self._give_up, self._attempt)

    def choose_server(self) -> str:
        """Whom to send the next attempt to."""
        return self.server

    def _give_up(self, attempt: int) -> None:
        if attempt == self._attempt and not self.done:
            self._failed(UnavailableError.code)

    def on_message(self, source: str, message: object) -> None:
        """Take the answer to the newest attempt; others come too late."""
        assert isinstance(message, Reply)
        if message.attempt != self._attempt:
            return
        if message.status == OK:
            self._end()
        else:
            self._failed(message.status)

    def _failed(self, status: int) -> None:
        remaining_ns = self._deadline_ns - self.world.now_ns
        decision = self.policy.decide_call(status, self._rounds, remaining_ns)
        self._attempt += 1  # whatever comes for the attempt that failed is too late
        if decision.action is Action.WAIT:
            self._rounds += 1
            self.after(decision.delay_ns, self._send)
            return
        if status == InvalidError.code and not self._clashes:
            raise Violation("an honest retry was taken for another request")
        self._end()

    def _end(self) -> None:
        self.world.log("end", self.name, self.finished)
        self.finished += 1
        self._attempt += 1
        self.after(self.world.random.randint(0, 300 * MS), self._next)
