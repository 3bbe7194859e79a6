"""An asyncio event loop in virtual time, one for each life of a simulated process.

Role: the real servers are written for asyncio; on THIS loop their coroutines run unchanged, driven
by the events of a `World`. Invariants: callbacks run one at a time, in the order in which they were
due; nothing waits for real. A dead loop runs nothing more: what its process had under way stays
where it was, as after kill -9, until `bury` takes it apart at the end of the run, when nothing that
it does can be seen. A frozen loop (SIGSTOP) keeps what becomes due and runs it when it thaws.
Context variables are not carried from task to task: nothing that runs here has any.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from ffs.errors import FFSError
from ffs.server.meta.store import ConflictError
from tests.sim.world import World

_NS = 1_000_000_000
_BURIALS_MAX = 8


class VirtualHandle:
    """A callback that is due, or will be: what `asyncio.Handle` is, without a context."""

    __slots__ = ("_args", "_callback", "_cancelled", "_when")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], when: float) -> None:
        self._callback = callback
        self._args = args
        self._when = when
        self._cancelled = False

    def cancel(self) -> None:
        """Do not run it."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether it was taken back."""
        return self._cancelled

    def when(self) -> float:
        """Return the time at which it is due, in seconds."""
        return self._when

    def run(self) -> None:
        """Run it, unless it was taken back."""
        if not self._cancelled:
            self._callback(*self._args)


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. Only what the servers use of the interface is there."""

    def __init__(self, world: World, work_ns: Callable[[], int]) -> None:
        self._world = world
        self._work_ns = work_ns
        self._ready: deque[VirtualHandle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self._readers: dict[int, Callable[[], None]] = {}
        self._threads_free_ns: dict[object, int] = {}
        self._draining = False
        self._planned = False
        self._dead = False
        self._frozen = False

    # --- what asyncio asks of a loop --------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._world.now_ns / _NS

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_running(self) -> bool:
        """Whether it is alive."""
        return not self._dead

    def is_closed(self) -> bool:
        """Never: what comes too late is kept, not refused."""
        return False

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """See asyncio."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        if len(self._tasks) > 256:
            self._tasks = [one for one in self._tasks if not one.done()]
        return task

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> VirtualHandle:
        """Run a callback in this turn, or as soon as the world comes round."""
        handle = VirtualHandle(callback, args, 0.0)
        self._ready.append(handle)
        if not (self._draining or self._planned or self._dead):
            self._planned = True
            self._world.after(0, self._turn)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> VirtualHandle:
        """See asyncio."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> VirtualHandle:
        """See asyncio."""
        timer = VirtualHandle(callback, args, when)
        delay_ns = max(0, round(when * _NS) - self._world.now_ns)
        self._world.after(delay_ns, self._due, timer)
        return timer

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function at one later moment; those of one executor one after the other."""
        future = self.create_future()
        free_ns = max(self._threads_free_ns.get(executor, 0), self._world.now_ns)
        done_ns = free_ns + self._work_ns()
        self._threads_free_ns[executor] = done_ns

        def work() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # handed to whoever awaits it
                future.set_exception(error)

        self.call_at(done_ns / _NS, work)
        return future

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Call back when `readable` says so."""
        self._readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: Any) -> bool:
        """Call back no more."""
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """Something can be read from a simulated descriptor."""
        if fd in self._readers:
            self.call_soon(self._readers[fd])

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nobody took care of an error: that ends the run, unless the process is dead."""
        error = context.get("exception")
        if isinstance(error, AssertionError):
            raise error
        if not self._dead:
            raise RuntimeError(f"unhandled in a server: {context['message']}: {error!r}") from error

    # --- what the simulation does with it ---------------------------------------------------------

    def enter(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run a callback now, unless the process is dead or stands still."""
        self._ready.append(VirtualHandle(callback, args, 0.0))
        self._turn()

    def freeze(self) -> None:
        """Stand still, as after SIGSTOP."""
        self._frozen = True

    def thaw(self) -> None:
        """Go on, with everything that came due meanwhile."""
        self._frozen = False
        self._turn()

    def die(self) -> None:
        """Run nothing more."""
        self._dead = True

    def bury(self) -> None:
        """End the tasks of a dead loop in order, so that none is found half done later."""
        assert self._dead
        self._readers.clear()
        for _ in range(_BURIALS_MAX):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self._drain()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.exception()
        self._tasks.clear()
        self._ready.clear()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A task that ended by a bug ends the run, whoever waits for it."""
        error = None if task.cancelled() or self._dead else task.exception()
        if error is not None and not isinstance(error, FFSError | OSError | ConflictError):
            raise error

    def _due(self, timer: VirtualHandle) -> None:
        if self._dead or timer.cancelled():
            return
        self._ready.append(timer)
        self._turn()

    def _turn(self) -> None:
        self._planned = False
        if not (self._dead or self._frozen or self._draining):
            self._drain()

    def _drain(self) -> None:
        self._draining = True
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            ready = self._ready
            dying = self._dead
            while ready and self._dead == dying:
                ready.popleft().run()
        finally:
            asyncio._set_running_loop(outer)
            self._draining = False
