"""`python -m ffs.bench.model`: what reading by RDMA should reach, and which resource is the wall.

Role: arithmetic on named inputs, for machines that nobody here has; measures nothing. Next to it:
`ffs-bench`, which measures TCP. docs/rdma.md says where each input is from, and what is left out.

The model. Each resource of a storage node and of a client has a rate in payload bytes; the smallest
is the wall. Requests fall on the wall's devices at random, and each client has only so many
outstanding, so some devices idle while others have queues: of `stations` alike with `requests`
among them, requests / (requests + stations - 1) are busy (a closed network of queues with
exponential service, which is the unkind case). Rates are of reads that miss every cache.

    python -m ffs.bench.model                            the published cluster, then FFS's
    python -m ffs.bench.model --nodes 50 --nic-gbit 400  one of your own; --help names all inputs
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

GB: Final = 1e9
TIB: Final = float(1 << 40)

PCIE_GT_S: Final = {3: 8.0, 4: 16.0, 5: 32.0}
"""Transfers a second and lane by generation, in 10^9: bits, 128 of 130 of them data."""

PCIE_PACKET, PCIE_HEADER = 256, 24
"""Payload of a PCIe packet as hosts set it, and the bytes around it."""

PACKET_HEADERS: Final = {"infiniband": 26, "roce": 82}
"""Bytes around a packet's payload: LRH, BTH and CRCs; Ethernet with its gap, IP, UDP, BTH, ICRC."""

RETH_BYTES: Final = 16
HEADER_BYTES: Final = 64
"""FFS's own header, which follows a request's payload in a packet of its own."""


@dataclass(frozen=True)
class Inputs:
    """A cluster and what is asked of it. GB are 10^9 bytes; CPU costs are seconds."""

    nodes: int = 180
    nics: int = 2
    nic_gbit: float = 200.0
    link: str = "infiniband"
    mtu: int = 4096
    pcie_generation: int = 4
    pcie_lanes: int = 16
    ssds: int = 16
    ssd_gb_s: float = 6.9
    ssd_reads_s: float = 1_000_000.0
    memory_gb_s: float = 164.0
    cores: int = 64
    clients: int = 500
    client_nics: int = 1
    client_cores: int = 8
    message_bytes: int = 1 << 20
    depth: int = 8
    latency_us: float = 120.0
    server_request_us: float = 5.8
    client_request_us: float = 1.6
    client_cpu_s_gb: float = 0.05


HELP: Final = {
    "nodes": "storage nodes",
    "nics": "cards of a storage node, each in a slot of its own",
    "nic_gbit": "rate of a card, Gbit/s",
    "link": "infiniband or roce",
    "mtu": "payload of a packet",
    "pcie_generation": "of a card's slot",
    "pcie_lanes": "of a card's slot",
    "ssds": "SSDs of a storage node",
    "ssd_gb_s": "sequential read of one, GB/s",
    "ssd_reads_s": "random 4 KiB reads of one a second",
    "memory_gb_s": "what a storage node's memory carries; each byte passes twice",
    "cores": "of a storage node",
    "clients": "machines that read",
    "client_nics": "cards of a client, of the same rate",
    "client_cores": "what a client spends on reading",
    "message_bytes": "of a range",
    "depth": "ranges that a client has outstanding",
    "latency_us": "of a range on an idle cluster, without its transfer",
    "server_request_us": "CPU time of a range on the daemon; no CPU touches its bytes",
    "client_request_us": "CPU time of a range on the client",
    "client_cpu_s_gb": "and of its bytes: checking them",
}

CHOICES: Final[dict[str, Sequence[object]]] = {
    "link": list(PACKET_HEADERS),
    "pcie_generation": list(PCIE_GT_S),
}

PUBLISHED: Final = Inputs()
"""3FS's read test: 180 nodes with 2 x 200 Gbit/s and 16 SSDs, 500 clients with 1 x 200."""

PUBLISHED_TIB_S: Final = 6.6


@dataclass(frozen=True)
class Prediction:
    """What each resource alone would allow the whole cluster, and what comes of it. GB/s."""

    limits: dict[str, float]
    wall: str
    busy: float
    total: float

    @property
    def tib_s(self) -> float:
        """The total in TiB/s."""
        return self.total * GB / TIB


def predict(at: Inputs) -> Prediction:
    """Return what the inputs lead to."""
    node = {
        "storage cards": at.nics * _card(at),
        "storage PCIe": at.nics * _slot(at),
        "SSDs": at.ssds * _ssd(at),
        "storage memory": at.memory_gb_s / 2,
        "storage CPU": at.cores * _core(at, at.server_request_us, 0.0),
    }
    client = {
        "client cards": at.client_nics * _card(at),
        "client PCIe": at.client_nics * _slot(at),
        "client CPU": at.client_cores * _core(at, at.client_request_us, at.client_cpu_s_gb),
        "outstanding ranges": _outstanding(at),
    }
    limits = {name: at.nodes * rate for name, rate in node.items()}
    limits |= {name: at.clients * rate for name, rate in client.items()}
    wall = min(limits, key=lambda name: limits[name])
    busy = _busy(at, wall)
    return Prediction(limits, wall, busy, limits[wall] * busy)


def _card(at: Inputs) -> float:
    """Payload that a card sends: its rate without the bytes around packets. GB/s."""
    around = PACKET_HEADERS[at.link]
    packets = math.ceil(at.message_bytes / at.mtu)
    wire = at.message_bytes + packets * around + RETH_BYTES + HEADER_BYTES + around
    return at.nic_gbit / 8 * at.message_bytes / wire


def _slot(at: Inputs) -> float:
    raw = PCIE_GT_S[at.pcie_generation] * at.pcie_lanes / 8 * 128 / 130
    return raw * PCIE_PACKET / (PCIE_PACKET + PCIE_HEADER)


def _ssd(at: Inputs) -> float:
    """A device's rate: its sequential one, or its random one for small ranges. GB/s."""
    return min(at.ssd_gb_s, at.ssd_reads_s * at.message_bytes / GB)


def _core(at: Inputs, request_us: float, cpu_s_gb: float) -> float:
    """What one core gets done. GB/s."""
    return 1 / (request_us * 1e-6 / (at.message_bytes / GB) + cpu_s_gb)


def _outstanding(at: Inputs) -> float:
    """What a client's outstanding ranges carry by Little's law. GB/s."""
    seconds = at.latency_us * 1e-6 + at.message_bytes / GB / _card(at)
    return at.depth * at.message_bytes / GB / seconds


def _busy(at: Inputs, wall: str) -> float:
    """The share of the wall's devices that are busy at a time; a client's own are not shared."""
    devices = {"storage cards": at.nics, "storage PCIe": at.nics, "SSDs": at.ssds}
    if not wall.startswith(("storage", "SSD")):
        return 1.0
    stations = at.nodes * devices.get(wall, 1)
    requests = at.clients * at.depth
    return requests / (requests + stations - 1)


def scaled(at: Inputs, nodes: int) -> Inputs:
    """Return the same cluster with another number of nodes, and clients in proportion."""
    return replace(at, nodes=nodes, clients=max(1, round(at.clients * nodes / at.nodes)))


def table(prediction: Prediction, rows: int | None = None) -> str:
    """Return a prediction as text, the lowest limits first; `rows` of them."""
    limits = sorted(prediction.limits.items(), key=lambda row: row[1])
    lines = [f"  {name:<20} {rate:>12,.0f} GB/s" for name, rate in limits[:rows]]
    lines.append(
        f"  = {prediction.total:,.0f} GB/s ({prediction.tib_s:.2f} TiB/s); the wall: "
        f"{prediction.wall}, busy {prediction.busy:.0%} of the time"
    )
    return "\n".join(lines)


def report() -> str:
    """Return the published cluster, and FFS's on the same machines with RoCE."""
    found = predict(PUBLISHED)
    depths = {d: predict(replace(PUBLISHED, depth=d)).tib_s for d in (2, 4, 8, 16, 64)}
    parts = [
        f"3FS's published cluster, {PUBLISHED_TIB_S} TiB/s measured beside other traffic:",
        table(found),
        f"  {found.tib_s / PUBLISHED_TIB_S:.2f} of what was published",
        "  by ranges outstanding: " + ", ".join(f"{d}: {t:.1f} TiB/s" for d, t in depths.items()),
    ]
    for size, depth in ((1 << 20, 8), (64 << 10, 64), (4 << 10, 256)):
        for nodes in (10, 180, 1000):
            at = replace(scaled(PUBLISHED, nodes), link="roce", message_bytes=size, depth=depth)
            parts.append(
                f"FFS, {nodes} nodes, {at.clients} clients, {depth} ranges of {size >> 10} KiB:"
            )
            parts.append(table(predict(at), rows=3))
    return "\n".join(parts)


def _positive(kind: type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not (value > 0 and math.isfinite(value)):
            raise argparse.ArgumentTypeError("more than 0, please")
        return value

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report, or one cluster if any input is given."""
    parser = argparse.ArgumentParser(
        prog="python -m ffs.bench.model",
        description="What reading by RDMA should reach, from named inputs.",
    )
    defaults = Inputs()
    for field in fields(Inputs):
        value = getattr(defaults, field.name)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(value) if field.name in CHOICES else _positive(type(value)),
            choices=CHOICES.get(field.name),
            help=f"{HELP[field.name]} ({value})",
        )
    given = {name: v for name, v in vars(parser.parse_args(argv)).items() if v is not None}
    print(table(predict(replace(defaults, **given))) if given else report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
