"""Runs tests in a guest and reports each as if it had run here: what `make test-rdma` starts.

    python -m tests.rdma.run                  the slice: every test of tests/rdma, and chosen others
    python -m tests.rdma.run --full           the whole client suite over RDMA, and longer races
    python -m tests.rdma.run --asan           the slice, with our C code under sanitizers
    python -m tests.rdma.run -- -k write -x   pytest's own arguments instead of the choice's

Previous hop: the Makefile; next: guest.py. pytest-xdist has a worker in each guest: a Python whose
standard input and output lie here. So a failure names the test, its output and its line; a guest
that dies, or a worker that hangs, fails the test that it was at. The exit status is pytest's; on a
machine without QEMU it is 0 with a message, but 1 under FFS_CI=1.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.rdma import image, kernel
from tests.rdma.guest import CACHE, MODULES, ROOT, Guest
from tests.rdma.kernel import GuestError

HERE: Final = ROOT / "tests" / "rdma"
GUESTS: Final = 2
"""Side by side, since what runs in one waits, or keeps one core busy. Each takes 3 GB at most."""
TEST_S: Final = 300
"""Bound of one test: emulation is an order of magnitude slower than the machine."""
FULL_TEST_S: Final = 3_600
"""The same where a test may have thousands of rounds."""


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
    return modules, [
        "env",
        "LD_PRELOAD=" + ":".join(str(Path(library).resolve()) for library in libraries),
        # What Python leaves behind at its exit is not ours.
        "ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1",
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
def booted(count: int) -> Iterator[list[Guest]]:
    """Guests, booted side by side and stopped in the end, however it comes."""
    kernel.fetch(CACHE)
    image.disks(CACHE, later=True)
    names = [f"run-{os.getpid()}-{number}" for number in range(count)]
    with contextlib.ExitStack() as stops, ThreadPoolExecutor(count) as pool:

        def boot(name: str) -> Guest:
            guest = Guest.boot(name, torch=True)
            stops.callback(guest.stop)
            return guest

        yield list(pool.map(boot, names))


def worker(guest: Guest, python: Sequence[str], *, full: bool) -> str:
    """Return what tells pytest-xdist of a worker in the guest, run by that Python."""
    environment = {
        "FFS_RDMA": "full" if full else "slice",
        "FFS_CI": os.environ.get("FFS_CI", ""),
        "FFS_TEST_TRANSPORT": "rdma",
        "FFS_TEST_DATA_HOST": "10.77.0.1",
        "FFS_TEST_READY_S": "180",
    }
    argv = [sys.executable, "-m", "tests.rdma.guest", "--name", guest.name, "--timeout", "86400"]
    words = [f"python={shlex.join([*argv, *python])}"]
    words += [f"env:{name}={value}" for name, value in environment.items()]
    return "//".join(["popen", *words])


def run_in(guests: Sequence[Guest], tests: Sequence[str], *, full: bool, asan: bool) -> int:
    """Run the tests in the guests, a file in one of them; return pytest's exit status."""
    modules, before = sanitized() if asan else (MODULES, [])
    programs = compile_programs()
    python = ["--modules", str(modules), "--", *before, "python"]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--dist", "loadfile", "-v"]
    pytest += ["-o", f"timeout={FULL_TEST_S if full else TEST_S}"]
    pytest += ["-o", "faulthandler_timeout=0"]
    with tempfile.TemporaryDirectory(prefix="ffs-rdma-") as here_and_there:
        for guest in guests:
            guest.sync(modules)
            guest.send(programs)
            guest.run("mkdir", "-p", here_and_there)  # the worker makes its own below it
            pytest += ["--tx", worker(guest, python, full=full)]
        pytest += [f"--basetemp={here_and_there}", *tests]
        return subprocess.run(pytest, cwd=ROOT, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Boot guests, run the tests in them, and end them."""
    parser = argparse.ArgumentParser(prog="python -m tests.rdma.run")
    parser.add_argument("--full", action="store_true", help="the long form")
    parser.add_argument("--asan", action="store_true", help="our C code under sanitizers")
    parser.add_argument("--name", help="use this running guest, and leave it running")
    parser.add_argument("pytest", nargs="*", help="instead of the chosen tests, after --")
    args = parser.parse_args(argv)
    if shutil.which("qemu-system-x86_64") is None:
        needed = os.environ.get("FFS_CI") == "1"
        print(
            "test-rdma: qemu-system-x86_64 is not installed: " + ("failed" if needed else "skipped")
        )
        return 1 if needed else 0
    with contextlib.ExitStack() as stack:
        if args.name:
            guests = [Guest.running(args.name) or Guest.boot(args.name, torch=True)]
        else:
            guests = stack.enter_context(booted(GUESTS))
        chosen = args.pytest or choice(args.full)
        status = run_in(guests, chosen, full=args.full, asan=args.asan)
        if status:
            print(*(guest.log_tail() for guest in guests), sep="\n")
        return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the guest must not stay behind
    try:
        sys.exit(main())
    except GuestError as problem:
        sys.exit(f"test-rdma: {problem}")
