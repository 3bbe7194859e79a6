"""What RDMA over our transport stands on, asked of real verbs (probe.c): each fact is a test.

Where a fact fails on another kernel, the transport's safety argument (docs/decisions/0010-rdma.md)
has to be read again before anything is changed here.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROBE = Path(__file__).resolve().parents[2] / "build" / "rdma" / "probe"

REFUSED = "remote access error"
LOST = "transport retry counter exceeded"
"""Nobody answered: how the side that started an operation learns that a queue pair has gone."""

FACTS = {
    # The daemon writes into what a client exposes, and reads from it.
    "write": "success",
    "write_arrived": "1",
    "read": "success 1",
    # What is not exposed, or no longer, is out of reach.
    "write_other_domain": REFUSED,
    "write_deregistered": REFUSED,
    "write_destroyed_pair": LOST,
    "write_pair_in_error": LOST,
    "write_pair_in_error_arrived": "0",
    # A window opens a region for one queue pair until it is invalidated, by either side.
    "write_region_without_remote": REFUSED,
    "window_allocated": "1",
    "window_write": "success",
    "window_invalidate": "success",
    "window_rebound_key_differs": "1",
    "window_write_again": "success",
    "window_write_invalidated": REFUSED,
    "window_write_invalidated_arrived": "0",
    "window_write_other_pair": REFUSED,
    "send_with_invalidate": "success",
    "send_with_invalidate_received": "success",
    "window_write_remotely_invalidated": REFUSED,
    # Teardown needs no peer.
    "window_freed_in_error": "0",
    "region_freed_after_window": "0",
    # A message waits for its receive if the sender is told to.
    "send_no_receive_retry_0": "RNR retry counter exceeded",
    "send_no_receive_retry_7": "nothing",
    "send_received_late": "success success",
    "send_too_long": "remote operation error local QP operation error",
    "shared_receive": "0 success success",
    # Limits and types.
    "relaxed_ordering": "1",
    "fork_support": "unneeded",
    "gid_type": "roce2",
    "register_read_only_page": "1",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What the probe says of the guest's two devices."""
    done = subprocess.run(
        [PROBE, "rxe0", "rxe1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("fact", FACTS)
def test_verbs_do_what_the_transport_relies_on(answers: dict[str, str], fact: str) -> None:
    assert answers[fact] == FACTS[fact]


def test_sixteen_pieces_and_a_header_fit_a_request(answers: dict[str, str]) -> None:
    assert int(answers["inline_bytes_with_16_sge"]) >= 64
