"""What this host makes of FFS: congestion control, io_uring, locked memory, huge pages, links.

Previous hop: ffs/cli/doctor.py. Nothing is changed, and nothing is sent. What the kernel does not
show (an older one, a container) is a note and no problem.
"""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ffs.cli import output
from ffs.cli.checks.finding import Finding, fine, note, problem
from ffs.config import ClientConfig

_IPV4: Final = Path("proc/sys/net/ipv4")
LINK_ERRORS_MIN: Final = 10
LINK_ERRORS_SHARE: Final = 1e-5
"""Of a link's packets: a good one loses none, a worn cable or a dirty fibre this many and more."""
_LINK_ERRORS: Final = ("rx_errors", "tx_errors", "rx_missed_errors", "rx_fifo_errors")


def check_host(config: ClientConfig, root: Path = Path("/")) -> Iterator[Finding]:
    """Look at the host of this process.

    Args:    root: where its /proc and /sys are
    """
    yield _congestion(config, root)
    yield _io_uring(root)
    yield _locked_memory(config, root)
    yield _huge_pages(root)
    yield from _links(root)


def bbr_problem(check: str, who: str, key: str) -> Finding:
    """Return what is wrong with BBR on data connections."""
    return problem(
        check,
        f"{who} sends data by TCP's bbr, which gives a fraction of cubic's rate in a data centre",
        f'set {key} = "cubic"',
    )


def _congestion(config: ClientConfig, root: Path) -> Finding:
    check = "congestion control"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        if config.congestion:
            try:
                sock.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_CONGESTION, config.congestion.encode()
                )
            except OSError:
                offered = _read(root / _IPV4 / "tcp_available_congestion_control")
                return problem(
                    check,
                    f"this kernel has no {config.congestion}, only {offered or 'its default'}",
                    f"modprobe tcp_{config.congestion}, or name another one in client.congestion",
                )
        used = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    name = used.rstrip(b"\0").decode()
    if name.startswith("bbr"):
        return bbr_problem(check, "this client", "client.congestion")
    return fine(check, f"data connections of this client use {name}")


def _io_uring(root: Path) -> Finding:
    check, disabled = "io_uring", _read(root / "proc/sys/kernel/io_uring_disabled")
    if disabled in ("1", "2"):
        return note(
            check,
            f"kernel.io_uring_disabled is {disabled}: a daemon here would read disks by threads",
            "sysctl kernel.io_uring_disabled=0 where storage daemons run",
        )
    return fine(check, "the kernel allows it" if disabled else "the kernel does not say")


def _locked_memory(config: ClientConfig, root: Path) -> Finding:
    check = "locked memory"
    try:
        devices = sorted(path.name for path in (root / "sys/class/infiniband").iterdir())
    except OSError:
        devices = []
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    shown = "unlimited" if limit == resource.RLIM_INFINITY else output.human_bytes(limit)
    if not devices:
        return fine(check, f"{shown}; without RDMA devices it does not matter")
    wanted = 2 * config.rdma_window_bytes
    if config.transport != "tcp" and 0 <= limit < wanted:
        return problem(
            check,
            f"{shown} may be locked: too little for RDMA by {', '.join(devices)}",
            f"ulimit -l {wanted // 1024} or more (limits.conf: memlock), or client.transport=tcp",
        )
    return fine(check, f"{shown}, enough for RDMA by {', '.join(devices)}")


def _huge_pages(root: Path) -> Finding:
    check = "huge pages"
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    chosen = re.search(r"\[(\w+)\]", _read(root / path))
    if chosen is None:
        return note(check, "this kernel does not say whether it has transparent huge pages")
    if chosen[1] == "never":
        return note(
            check,
            "transparent huge pages are off: large buffers cost more page faults",
            f"echo madvise > /{path}",
        )
    return fine(check, f"transparent huge pages: {chosen[1]}")


def _links(root: Path) -> Iterator[Finding]:
    check, looked = "network links", 0
    for link in sorted((root / "sys/class/net").glob("*/statistics")):
        name = link.parent.name
        counts = {path.name: int(_read(path) or 0) for path in link.iterdir()}
        packets = counts.get("rx_packets", 0) + counts.get("tx_packets", 0)
        looked += 1
        errors = {kind: counts[kind] for kind in _LINK_ERRORS if counts.get(kind)}
        total = sum(errors.values())
        if total >= LINK_ERRORS_MIN and total >= LINK_ERRORS_SHARE * packets:
            told = ", ".join(f"{count} {kind}" for kind, count in errors.items())
            yield problem(
                check,
                f"{name} has lost packets since it came up: {told} of {packets}",
                f"look at `ethtool -S {name}`, its cable and switch port; rx_missed_errors and "
                "rx_fifo_errors: a longer ring (ethtool -G)",
            )
            looked -= 1
    if looked:
        yield fine(check, f"{output.counted(looked, 'link')} without losses to speak of")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
