"""A ring that CUDA knows: `pin_memory` finds its tensors pinned and copies nothing.

Role: the loader registers the memory of its ring once, in the training process, where there is CUDA
and it was asked for pinned memory. `tensor.to("cuda", non_blocking=True)` then copies straight out
of the slot, after the call has returned; so a slot whose tensor has died is not given to a worker
before the copies that were under way are done.

What is waited for are the streams that are current when the tensor dies, on every device that
holds tensors. A copy on another stream is the caller's to keep the tensor for, as with any pinned
memory that torch's own allocator did not make.

Failure behaviour: memory that CUDA refuses (its own limits; RLIMIT_MEMLOCK is not asked) is used
unpinned, with a warning: torch copies each batch into pinned memory of its own then.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from typing import Any, Final

import numpy as np
import torch

from ffs.client.torch.ring import Ring

_PORTABLE: Final = 1
"""cudaHostRegisterPortable: pinned for the contexts of all devices."""


class Pinning:
    """A ring's registration, and its slots that copies may still be reading.

    Threads: tensors may die in any; `settle` is the loop's
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = weakref.proxy(ring)
        self._waiting: deque[tuple[int, list[torch.cuda.Event]]] = deque()

    def retire(self, slot: int) -> None:
        """Free a slot once the copies that are under way now are done."""
        events = [torch.cuda.current_stream(d).record_event() for d in _devices_in_use()]
        self._waiting.append((slot, events))

    def settle(self) -> None:
        """Free the slots whose copies are done."""
        while self._waiting and all(_done(event) for event in self._waiting[0][1]):
            self._ring.free(self._waiting.popleft()[0])


def pin(ring: Ring) -> Pinning | None:
    """Register a ring's memory; None where CUDA is absent or refuses."""
    if not torch.cuda.is_available():
        return None
    memory = np.frombuffer(ring.memory, np.uint8)
    address = memory.ctypes.data
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # starts CUDA
    status = runtime.cudaHostRegister(address, memory.nbytes, _PORTABLE)
    if int(status) != 0:
        warnings.warn(
            f"CUDA does not register the ring of {memory.nbytes >> 20} MiB ({status}): "
            "batches are copied into pinned memory",
            stacklevel=2,
        )
        return None
    pinning = Pinning(ring)
    ring.on_end(pinning.retire)
    weakref.finalize(ring, _unpin, runtime, address).atexit = False
    return pinning


def _done(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]  # torch has no types for it


def _unpin(runtime: Any, address: int) -> None:
    for device in _devices_in_use():
        torch.cuda.synchronize(device)
    runtime.cudaHostUnregister(address)


def _devices_in_use() -> list[int]:
    """Return the devices that hold tensors: asking others would make contexts on them."""
    return [d for d in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(d)]
