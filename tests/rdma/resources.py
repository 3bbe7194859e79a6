"""What the kernel keeps of RDMA for all of the guest: how a test sees that nothing has leaked.

Memory windows are in no list of the kernel's, but each holds its protection domain: they are seen
in the domains' users.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any, Final

SETTLE_S: Final = 60.0
"""Bound of the wait for processes and daemons that still take their things down."""
_KINDS: Final = ("pd", "cq", "qp", "mr", "ctx", "srq", "cm_id")

Held = dict[str, int]


def held() -> Held:
    """Count what exists on both devices by kind; `users` are the users of all domains together."""
    devices = _shown()
    counts = {kind: sum(device.get(kind, 0) for device in devices) for kind in _KINDS}
    return {**counts, "users": sum(domain["users"] for domain in _shown("pd"))}


def settled(before: Held) -> Held:
    """Return what exists once it is no more than before, or what is left after a long wait."""
    give_up = time.monotonic() + SETTLE_S
    while (now := held()) != before and time.monotonic() < give_up:
        time.sleep(0.2)
    return now


def _shown(*what: str) -> list[dict[str, Any]]:
    command = ["rdma", "-j", "resource", "show", *what]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(json.loads(shown or "[]"))
