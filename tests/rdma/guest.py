"""A guest machine with Soft-RoCE: boots it, keeps it, sends it the checkout, runs commands in it.

    python -m tests.rdma.guest -- ibv_devices                one command in a guest made for it
    python -m tests.rdma.guest --keep -- pytest -x FILE      boot, run, and leave the guest running
    python -m tests.rdma.guest -- COMMAND                    a running guest is used: seconds
    python -m tests.rdma.guest --stop                        power it off

Every command finds the checkout as it is now (what git does not ignore, and the compiled modules),
at the same path as outside, with the virtual environment's Python as `python`. `--name` tells
several guests apart, `--torch` boots one that has torch. Next hops: kernel.py and image.py make
what is booted, init.sh and agent.py run in it. Every wait is bounded; a guest that does not come up
is stopped, and the end of its serial line is in the error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, Self

from tests.rdma import agent, image, kernel
from tests.rdma.kernel import GuestError

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / "build" / "rdma"
MODULES: Final = ROOT / "ffs"
BOOT_S: Final = 180.0
COMMAND_S: Final = 600.0
SILENCE_S: Final = 120.0
"""A guest whose agent has not said for so long that a command still runs is dead."""
MEMORY: Final = "3G"
SCRATCH: Final = "2G"


class Reading(Protocol):
    """Where a command's input comes from."""

    def read1(self, size: int, /) -> bytes:
        """Return some bytes as soon as there are any; none at the end."""


@dataclass(frozen=True)
class Ran:
    """What a command in the guest came to."""

    status: int
    output: bytes
    errors: bytes


class Guest:
    """A running guest, reached by the files of its directory: any process may use it.

    Threads: several may run commands at once; `sync` takes turns by a lock.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name.removeprefix("guest-")
        state = json.loads((directory / "state.json").read_text())
        self.pid: int = state["pid"]
        self._port: int = state["port"]
        self._token: str = state["token"]

    # --- its life -----------------------------------------------------------------------------

    @classmethod
    def boot(cls, name: str = "default", *, torch: bool = False) -> Self:
        """Make what is missing, boot a guest and return it once it answers."""
        directory = CACHE / f"guest-{name}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        linux = kernel.fetch(CACHE)
        disks = image.disks(CACHE, later=torch)
        memory = image.initramfs(directory, linux)
        scratch = directory / "scratch.ext4"
        _check("truncate", "-s", SCRATCH, str(scratch))
        _check("mkfs.ext4", "-q", "-O", "^has_journal", str(scratch))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        token = secrets.token_hex(16)
        argv = _qemu(linux.image, memory, [scratch, *disks], port, token, directory)
        with (directory / "qemu.log").open("wb") as log:
            qemu = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        state = {"pid": qemu.pid, "port": port, "token": token}
        (directory / "state.json").write_text(json.dumps(state))
        guest = cls(directory)
        try:
            guest._wait_ready(qemu)
        except BaseException:
            guest.stop()
            raise
        return guest

    @classmethod
    def running(cls, name: str = "default") -> Self | None:
        """Return the guest of that name if there is one and it runs."""
        directory = CACHE / f"guest-{name}"
        try:
            guest = cls(directory)
            command = Path(f"/proc/{guest.pid}/cmdline").read_bytes()
        except FileNotFoundError:
            return None
        return guest if str(directory).encode() in command else None

    def _wait_ready(self, qemu: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + BOOT_S
        serial = self.directory / "serial.log"
        while time.monotonic() < give_up:
            if serial.exists() and b"guest: ready" in serial.read_bytes():
                return
            if qemu.poll() is not None:
                break
            time.sleep(0.05)
        raise GuestError(f"the guest did not come up\n{self.log_tail()}")

    def stop(self) -> None:
        """End the guest; nothing in it is worth a clean stop."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for leftover in ("scratch.ext4", "state.json", "initramfs.cpio"):
            (self.directory / leftover).unlink(missing_ok=True)

    def log_tail(self, limit: int = 4_000) -> str:
        """Return the end of the serial line's log and of QEMU's own messages."""
        logs = [self.directory / "serial.log", self.directory / "qemu.log"]
        return "\n".join(
            f"--- {log.name}\n{log.read_bytes()[-limit:].decode(errors='replace')}"
            for log in logs
            if log.exists()
        )

    def answers(self) -> bool:
        """Whether commands can be run in it."""
        try:
            return self.run("true", timeout_s=SILENCE_S).status == 0
        except (GuestError, OSError):
            return False

    # --- commands -----------------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        env: dict[str, str] | None = None,
        stdin: Reading | None = None,
        timeout_s: float = COMMAND_S,
        echo: bool = False,
    ) -> Ran:
        """Run a command in the checkout's place; `echo` passes its output on as it comes."""
        output, errors = io.BytesIO(), io.BytesIO()
        for kind, content in self._frames(argv, env or {}, stdin, timeout_s):
            if kind == b"x":
                return Ran(int(content), output.getvalue(), errors.getvalue())
            into, stream = (output, sys.stdout) if kind == b"o" else (errors, sys.stderr)
            if echo:
                stream.buffer.write(content)
                stream.buffer.flush()
            else:
                into.write(content)
        raise GuestError(f"the guest broke off {argv[0]}\n{self.log_tail()}")

    def _frames(
        self,
        argv: Sequence[str],
        env: dict[str, str],
        stdin: Reading | None,
        timeout_s: float,
    ) -> Iterator[tuple[bytes, bytes]]:
        path = f"{sys.prefix}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        request = {
            "token": self._token,
            "argv": argv,
            "cwd": str(ROOT) if (self.directory / "sent.json").exists() else "/",
            "env": {"PATH": path, "PYTHONPATH": str(ROOT), **env},
            "timeout_s": timeout_s,
        }
        with socket.create_connection(("127.0.0.1", self._port), SILENCE_S) as link:
            link.sendall(json.dumps(request).encode() + b"\n")
            feeder = threading.Thread(target=_feed, args=(link, stdin), daemon=True)
            feeder.start()
            with link.makefile("rb") as frames:
                yield from _read(frames)

    def sync(self, modules: Path = MODULES) -> None:
        """Bring the guest's copy of the checkout up to date; sends only what has changed.

        Args:    modules: where the compiled modules are that it is to have in ffs/
        """
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known_path = self.directory / "sent.json"
            known = json.loads(known_path.read_text()) if known_path.exists() else {}
            files = _checkout(modules)
            here = {p: [f.stat().st_mtime_ns, f.stat().st_size] for p, f in files.items()}
            changed = {p: files[p] for p, facts in here.items() if known.get(p) != facts}
            gone = [p for p in known if p not in here]
            if gone:
                self._must("rm", "-f", *gone)
            if changed:
                self._place(changed)
            known_path.write_text(json.dumps(here))

    def send(self, paths: Iterable[Path]) -> None:
        """Copy files to the same absolute paths in the guest."""
        self._place({str(path): path for path in paths})

    def _place(self, files: dict[str, Path]) -> None:
        self._must("tar", "-x", "-C", "/", "-f", "-", stdin=_packed(files))

    def _must(self, *argv: str, stdin: Reading | None = None) -> None:
        ran = self.run(*argv, stdin=stdin)
        if ran.status != 0:
            raise GuestError(f"{argv[0]} failed in the guest: {ran.errors.decode()}")


def _qemu(
    linux: Path, memory: Path, disks: list[Path], port: int, token: str, directory: Path
) -> list[str]:
    """Return QEMU's command line: emulation only, which every machine has."""
    # An emulated timer may be late where the machine is busy: the kernel must not test it.
    command_line = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"
    command_line += f" ffs.token={token}"
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2"]
    argv += ["-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-serial", f"file:{directory}/serial.log"]
    argv += ["-kernel", str(linux), "-initrd", str(memory)]
    argv += ["-append", f"{command_line} ffs.python={Path(sys.executable).resolve()}"]
    argv += ["-device", "virtio-rng-pci"]
    argv += [
        "-nic",
        f"user,restrict=on,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:{agent.PORT}",
    ]
    for number, disk in enumerate(disks):
        mode = "cache=unsafe" if number == 0 else "readonly=on"
        argv += ["-drive", f"file={disk},format=raw,if=virtio,{mode}"]
    return argv


def _checkout(modules: Path) -> dict[str, Path]:
    """Return what a command in the guest may need, compiled files included: place there -> file.

    What Python has not compiled yet is compiled now: in the guest it takes ten times as long. A
    file that cannot be compiled is left to whoever imports it.
    """
    code = [str(path.parent) for path in ROOT.glob("*/__init__.py")]
    subprocess.run([sys.executable, "-m", "compileall", "-qq", *code], check=False)
    listed = _check("git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard")
    paths = [ROOT / name for name in listed.split("\0") if name]
    files = {str(path): path for path in paths if path.is_symlink() or path.is_file()}
    for path in paths:
        if path.suffix == ".py":
            compiled = (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")
            files |= {str(found): found for found in compiled}
    return files | {str(MODULES / found.name): found for found in modules.glob("*.so")}


def _packed(files: dict[str, Path]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for place, file in files.items():
            archive.add(file, arcname=place, recursive=False)
    packed.seek(0)
    return packed


def _read(frames: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """What a command's frames hold, as agent.py has them."""
    try:
        while head := frames.read(5):
            (size,) = struct.unpack("<I", head[1:])
            content = frames.read(size)
            if head[:1] != b"k":
                yield head[:1], content
    except TimeoutError:
        raise GuestError(f"the guest has said nothing for {SILENCE_S:.0f} s") from None


def _feed(link: socket.socket, stdin: Reading | None) -> None:
    with contextlib.suppress(OSError):
        while stdin is not None and (content := stdin.read1(65_536)):
            link.sendall(content)
        link.shutdown(socket.SHUT_WR)


def _check(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not installed; run .ci/setup.sh test") from None
    except subprocess.CalledProcessError as error:
        raise GuestError(f"{' '.join(command)} failed: {error.stderr}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command in a guest; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.rdma.guest")
    parser.add_argument("--name", default="default", help="which guest")
    parser.add_argument("--torch", action="store_true", help="boot one that has torch")
    parser.add_argument("--keep", action="store_true", help="leave a guest that was booted running")
    parser.add_argument("--stop", action="store_true", help="power the guest off")
    parser.add_argument("--modules", type=Path, default=MODULES, metavar="DIR", help="compiled")
    parser.add_argument("--timeout", type=float, default=COMMAND_S, metavar="S")
    parser.add_argument("command", nargs="*", help="what to run, after --")
    args = parser.parse_args(argv)
    guest = Guest.running(args.name)
    if args.stop:
        if guest is not None:
            guest.stop()
        return 0
    booted = guest is None
    guest = guest or Guest.boot(args.name, torch=args.torch)
    try:
        guest.sync(args.modules)
        stdin = None if sys.stdin.isatty() else os.fdopen(0, "rb")
        command = args.command or ["true"]
        ran = guest.run(*command, stdin=stdin, timeout_s=args.timeout, echo=True)
    finally:
        if booted and not args.keep:
            guest.stop()
    return ran.status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestError as problem:
        sys.exit(f"guest: {problem}")
