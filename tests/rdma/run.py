"""Runs tests in a guest and reports each as if it had run here: what `make test-rdma` starts.

    python -m tests.rdma.run                  the slice: every test of tests/rdma, and chosen others
    python -m tests.rdma.run --full           the whole client suite over RDMA, and longer races
    python -m tests.rdma.run --full --record FILE     the same, less what has passed as FILE says
    python -m tests.rdma.run --asan           the slice, with our C code under sanitizers
    python -m tests.rdma.run -- -k write -x   pytest's own arguments instead of the choice's

Previous hop: the Makefile; next: guest.py. pytest-xdist has a worker in each guest: a Python whose
standard input and output lie here. So a failure names the test, its output and its line. A guest
that dies, or a worker that hangs, fails the test that it was at, and others go on in a new one
(record.py). The exit status is pytest's worst; on a machine without QEMU it is 0 with a message,
but 1 under FFS_CI=1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.rdma import image, kernel, record
from tests.rdma.guest import CACHE, MODULES, ROOT, Guest
from tests.rdma.kernel import GuestError

HERE: Final = ROOT / "tests" / "rdma"
GUESTS: Final = 2
"""Side by side, since what runs in one waits, or keeps one core busy. Each takes 3 GB at most."""
SLOW: Final = int(os.environ.get("FFS_TEST_SLOW", "6"))
"""What tests' own bounds are multiplied by (tests/harness.py): emulation is an order of magnitude
slower than the machine."""
TEST_S: Final = 50 * SLOW
"""Bound of one test."""
FOUND: Final = "/tmp/sanitizer"
"""In the guest: what a sanitizer finds is not to end where pytest keeps a dead worker's output."""
NO_TESTS: Final = 5
"""Pytest's exit status when none is left to run."""


def compile_programs() -> list[Path]:
    """Compile what the tests run against; the guest has no compiler."""
    CACHE.mkdir(parents=True, exist_ok=True)
    cc = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    probe, native = CACHE / "probe", ROOT / "native"
    subprocess.run([*cc, "-o", probe, HERE / "probe.c", "-libverbs"], check=True)
    stranger = CACHE / "stranger"
    subprocess.run([*cc, "-o", stranger, HERE / "stranger.c", "-lrdmacm", "-libverbs"], check=True)
    ours = [*native.glob("core/*.c"), *native.glob("rdma/*.c")]
    for name in ("peer", "liar"):
        files = [str(path) for path in (CACHE / name, HERE / f"{name}.c", *ours)]
        subprocess.run([*cc, f"-I{native}", "-o", *files, "-ldl", "-lpthread"], check=True)
    return [probe, stranger, CACHE / "peer", CACHE / "liar"]


def sanitized() -> tuple[Path, list[str]]:
    """Compile our modules with sanitizers; return where they are, and what to start Python with.

    The library that they need is loaded before Python, which knows nothing of it.
    """
    modules = ROOT / "build" / "rdma-asan"
    modules.mkdir(parents=True, exist_ok=True)
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DFFS_SANITIZE=address,undefined"]
    build = [ROOT / ".ci" / "build.sh", modules / "build", modules, *options]
    subprocess.run([str(word) for word in build], check=True)
    for module in modules.glob("*.so"):  # a sanitizer that watches ordinary ones finds nothing
        if b"__asan_init" not in module.read_bytes():
            raise GuestError(f"{module} was compiled without sanitizers")
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    log = f"log_path={FOUND}"
    return modules, [
        "env",
        "LD_PRELOAD=" + ":".join(str(Path(library).resolve()) for library in libraries),
        # What Python leaves behind at its exit is not ours.
        f"ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1:{log}",
        f"UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:{log}",
    ]


def choice(full: bool) -> list[str]:
    """Return pytest's arguments for the tests to run, of slice.txt and full.txt.

    A line is a file, a directory, a test, or a pattern of files; `not` before a test leaves it out.
    """
    files = [HERE / "slice.txt", *([HERE / "full.txt"] if full else [])]
    lines = [line.partition("#")[0].strip() for f in files for line in f.read_text().splitlines()]
    chosen: list[str] = []
    for line in filter(None, lines):
        word, _, rest = line.partition(" ")
        if word == "not":
            chosen.append(f"--deselect={rest.strip()}")
        elif "*" in line:
            chosen += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(line))
        else:
            chosen.append(line)
    return chosen


@contextlib.contextmanager
def booted() -> Iterator[list[Guest]]:
    """New guests, booted side by side and stopped in the end, however it comes."""
    kernel.fetch(CACHE)
    image.disks(CACHE, later=True)
    names = [f"run-{os.getpid()}-{number}" for number in range(GUESTS)]
    with contextlib.ExitStack() as stops, ThreadPoolExecutor(GUESTS) as pool:

        def boot(name: str) -> Guest:
            guest = Guest.boot(name, torch=True)
            stops.callback(guest.stop)
            return guest

        yield list(pool.map(boot, names))


@contextlib.contextmanager
def kept(name: str) -> Iterator[list[Guest]]:
    """The guest of that name, which is left running."""
    guest = Guest.running(name)
    if guest is not None and not guest.answers():
        guest.stop()
        guest = None
    yield [guest or Guest.boot(name, torch=True)]


@dataclass(frozen=True)
class Plan:
    """What is to run: the tests, how long, and how our modules are compiled."""

    tests: Sequence[str]
    full: bool
    races: int
    modules: Path
    before: Sequence[str]
    """What Python is started with."""
    record: Path


def worker(guest: Guest, python: Sequence[str], plan: Plan) -> str:
    """Return what tells pytest-xdist of a worker in the guest, run by that Python."""
    environment = {
        "FFS_RDMA": "full" if plan.full else "slice",
        "FFS_RDMA_RACES": str(plan.races),
        "FFS_CI": os.environ.get("FFS_CI", ""),
        "FFS_TEST_TRANSPORT": "rdma",
        "FFS_TEST_DATA_HOST": "10.77.0.1",
        "FFS_TEST_SLOW": str(SLOW),
    }
    argv = [sys.executable, "-m", "tests.rdma.guest", "--name", guest.name, "--timeout", "86400"]
    words = [f"python={shlex.join([*argv, *python])}"]
    words += [f"env:{name}={value}" for name, value in environment.items()]
    return "//".join(["popen", *words])


def run_in(guests: Sequence[Guest], plan: Plan) -> int:
    """Run what is left of the plan in the guests, a file in one of them; return pytest's status."""
    programs = [*compile_programs(), *([plan.record] if plan.record.exists() else [])]
    python = ["--modules", str(plan.modules), "--", *plan.before, "python"]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--dist", "loadfile", "-v"]
    pytest += ["-p", record.__name__, "--record", str(plan.record), "--max-worker-restart=0"]
    # What hangs where no signal's handler can run ends its worker a minute later.
    pytest += ["-o", f"timeout={TEST_S}", "-o", f"faulthandler_timeout={TEST_S + 60}"]
    with tempfile.TemporaryDirectory(prefix="ffs-rdma-") as here_and_there:
        for guest in guests:
            guest.sync(plan.modules)
            guest.send(programs)
            guest.run("mkdir", "-p", here_and_there)  # the worker makes its own below it
            pytest += ["--tx", worker(guest, python, plan)]
        pytest += [f"--basetemp={here_and_there}", *plan.tests]
        return subprocess.run(pytest, cwd=ROOT, check=False).returncode


def found(guest: Guest) -> str:
    """Return what sanitizers have said in the guest, which then forgets it."""
    if not guest.answers():
        return ""
    return guest.run("sh", "-c", f"cat {FOUND}.*; rm -f {FOUND}.*").output.decode(errors="replace")


def run_all(guests_of: Callable[[], AbstractContextManager[list[Guest]]], plan: Plan) -> int:
    """Run the plan, in new guests as often as a worker has died; return the worst status.

    It comes to an end, since each death is a test that is not run again.
    """
    worst = 0
    while True:
        before = record.ended(plan.record)
        with guests_of() as guests:
            status = run_in(guests, plan)
            if status not in (0, NO_TESTS):
                print(*(guest.log_tail() for guest in guests), *map(found, guests), sep="\n")
        worst = max(worst, 0 if before and status == NO_TESTS else status)
        after = record.ended(plan.record)
        if record.CRASHED not in [how for test, how in after.items() if test not in before]:
            return worst


def main(argv: Sequence[str] | None = None) -> int:
    """Boot guests, run the tests in them, and end them."""
    parser = argparse.ArgumentParser(prog="python -m tests.rdma.run")
    parser.add_argument("--full", action="store_true", help="the long form")
    parser.add_argument("--asan", action="store_true", help="our C code under sanitizers")
    parser.add_argument("--races", type=int, help="how many instead of 200, or 10,000 in full")
    parser.add_argument("--record", type=Path, metavar="FILE", help="of what has passed, to go on")
    parser.add_argument("--name", help="use this running guest, and leave it running")
    parser.add_argument("pytest", nargs="*", help="instead of the chosen tests, after --")
    args = parser.parse_args(argv)
    if shutil.which("qemu-system-x86_64") is None:
        needed = os.environ.get("FFS_CI") == "1"
        print(
            "test-rdma: qemu-system-x86_64 is not installed: " + ("failed" if needed else "skipped")
        )
        return 1 if needed else 0
    modules, before = sanitized() if args.asan else (MODULES, [])
    guests_of = partial(kept, args.name) if args.name else booted
    with tempfile.TemporaryDirectory(prefix="ffs-rdma-record-") as directory:
        path: Path = args.record or Path(directory, "record")
        record.keep_passed(path)
        races = args.races or (10_000 if args.full else 200)
        tests = args.pytest or choice(args.full)
        plan = Plan(tests, args.full, races, modules, before, path.resolve())
        return run_all(guests_of, plan)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the guest must not stay behind
    try:
        sys.exit(main())
    except GuestError as problem:
        sys.exit(f"test-rdma: {problem}")
