"""One process that `ffs up` keeps running: started, waited for, restarted when it dies, stopped.

Used by server/up.py. One that keeps failing is given up after TRIES_MAX starts. A child gets a pipe
as its stdin and `--exit-with-parent`: however the supervisor ends, the pipe's end closes and the
child ends too. It also inherits a lock file's descriptor, so that the lock stays taken until the
last child of a dead supervisor is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ffs.errors import FFSError, UnavailableError
from ffs.server.log_files import rotate

log = logging.getLogger("ffs.up")

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 20.0
BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 5.0
HEALTHY_S_MIN: Final = 10.0
"""A child that lived so long is started again at once when it dies."""
TRIES_MAX: Final = 10
"""Starts in a row, about half a minute of them, that may fail, or soon end by themselves."""
_KILLED: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What others end a process by; a bug of its own ends it otherwise."""
LOG_TAIL_BYTES: Final = 2_000


def port_is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:  # taken, or not an address of this machine: either way not for us
            return False
    return True


class Child:
    """One process and its restarts.

    Args:    name: also its log file's; command: the argument list for a port (0: any free one);
             port: what to try first; pinned: whether only that port will do;
             held_fd: a lock's descriptor that the child keeps open while it lives
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], list[str]],
        log_path: Path,
        *,
        host: str,
        port: int,
        pinned: bool,
        held_fd: int,
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.pinned = pinned
        self.starts = 0
        self._command = command
        self._log_path = log_path
        self._held_fd = held_fd
        self._log_began = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    async def start(self) -> None:
        """Start it and wait until it serves; its port is known afterwards.

        Raises: UnavailableError with the end of its log; the process is gone then.
        """
        port = self.port
        if not self.pinned and not port_is_free(self.host, port):
            port = 0
        self.starts += 1
        arguments = self._command(port)
        rotate(self._log_path)
        with self._log_path.open("ab") as log_file:
            self._log_began = log_file.tell()
            self._process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_file,
                pass_fds=(self._held_fd,),
                start_new_session=True,  # Ctrl-C reaches the supervisor, which stops us in order
            )
        try:
            await self._wait_ready(self._process)
        except BaseException:
            await self.kill()
            raise

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_S_MAX):
                line = await process.stdout.readline()
        except TimeoutError:
            raise self._not_started(f"did not serve within {READY_S_MAX:.0f} s") from None
        word, _, address = line.decode("utf-8", "replace").strip().partition(" ")
        if word != "ready":
            status = await self._exit_status(process)
            raise self._not_started(f"ended with status {status} before it served")
        self.port = int(address.rpartition(":")[2])
        log.info("process_ready", extra={"child": self.name, "pid": process.pid})

    async def _exit_status(self, process: asyncio.subprocess.Process) -> int | None:
        try:
            async with asyncio.timeout(STOP_S_MAX):
                return await process.wait()
        except TimeoutError:  # it closed its stdout and lingers; the caller kills it
            return None

    def _not_started(self, what: str) -> UnavailableError:
        last = self._last_words()
        return UnavailableError(
            f"{self.name} {what}: {last}" if last else f"{self.name} {what}",
            hint=f"its log is {self._log_path}",
        )

    def _last_words(self) -> str:
        """Return the last line that it wrote to its log since it was started; "" without one."""
        with self._log_path.open("rb") as log_file:
            end = log_file.seek(0, os.SEEK_END)
            began = self._log_began if self._log_began <= end else 0  # it was cut meanwhile
            log_file.seek(max(began, end - LOG_TAIL_BYTES))
            tail = log_file.read().decode("utf-8", "replace")
        return tail.strip().rpartition("\n")[2]

    async def keep_running(self) -> None:
        """Start it again whenever it dies; runs until cancelled.

        Raises: UnavailableError when it was given up: TRIES_MAX starts in a row were of no use
        """
        loop = asyncio.get_running_loop()
        tries, useless, began, reason = 0, 0, loop.time(), ""
        while True:
            if not reason:  # it serves, or did
                assert self._process is not None
                status = await self._process.wait()
                self._log_death(status)
                if loop.time() - began >= HEALTHY_S_MIN:
                    tries = useless = 0
                else:  # somebody who kills it says nothing about it
                    useless += int(tries > 0 and -status not in _KILLED)
            else:
                useless += 1
            if useless >= TRIES_MAX:
                raise self._given_up(reason or "it dies soon after each of them")
            await asyncio.sleep(min(BACKOFF_S_MIN * 2**tries, BACKOFF_S_MAX))
            tries, began = tries + 1, loop.time()
            reason = await self._start_again()

    async def _start_again(self) -> str:
        """Try once; return why it was in vain, "" if it serves."""
        try:
            await self.start()
        except (FFSError, OSError) as error:
            log.error("process_restart_failed", extra={"error": str(error)})
            return error.message if isinstance(error, FFSError) else str(error)
        log.warning("process_restarted", extra={"child": self.name, "pid": self.pid})
        return ""

    def _given_up(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"{self.name} is given up after {TRIES_MAX} starts: {reason}",
            hint=f"its log is {self._log_path}",
        )

    def rotate_log(self) -> None:
        """Keep its log within bounds while it runs."""
        if rotate(self._log_path):
            log.info("log_rotated", extra={"path": str(self._log_path)})

    def _log_death(self, status: int) -> None:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        facts = {"child": self.name, "ended_by": how, "log": str(self._log_path)}
        log.warning("process_died", extra=facts)

    async def stop(self) -> None:
        """Ask it to stop, and end it the hard way if it does not."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await process.wait()
        except TimeoutError:
            log.error("process_ignored_sigterm", extra={"child": self.name})
            await self.kill()

    async def kill(self) -> None:
        """End it at once and wait until it is gone."""
        self.kill_soon()
        if self._process is not None:
            await self._process.wait()

    def kill_soon(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # it ended by itself a moment ago
                return
