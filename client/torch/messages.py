"""What a loop and its workers tell each other for each batch, as a few bytes.

Role: client/torch/channel.py asks whether an item that torch wants to send is one of these, and
carries it; at the other end it becomes the item again. Two kinds matter: (number, indices), and
(number, batch) where the batch lies in a slot of the loader's ring: that becomes the tensor.

Layout, in this machine's own order: size and kind of 4 bytes, the number, and 64-bit numbers:

    INDICES, ARRAY: of the samples
    BATCH: slot, bytes, then how many samples of the form's shape, or the length of each

Invariants: which ring it is and what its batches are both ends know beforehand; any other batch is
none of these. Nothing is pickled: that runs more Python, in caches that the last batch has emptied,
than all the rest of a message takes.
Copies: none of the batch.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import Any, Final

import numpy as np

from ffs.client.torch.batch import Batch, Form
from ffs.client.torch.ring import Slot, ring_named

_HEAD: Final = Struct("=IIq")
HEAD_BYTES: Final = _HEAD.size

ELSEWHERE: Final = 0
"""The item itself comes by another way, in the order of these."""
_END: Final = 1
"""None, with which torch ends a worker."""
_INDICES: Final = 2
_ARRAY: Final = 3
_BATCH: Final = 4


Message = tuple[int, int, bytes]
"""As it was received: kind, number, and the numbers behind them."""


def note(kind: int) -> bytes:
    """Return a message without content."""
    return _HEAD.pack(HEAD_BYTES, kind, 0)


def split(data: bytes) -> tuple[Message, bytes] | None:
    """Return the first message of what was received, and what is behind it; None: it goes on."""
    if len(data) < HEAD_BYTES:
        return None
    size, kind, number = _HEAD.unpack_from(data)
    if len(data) < size:
        return None
    return (kind, number, data[HEAD_BYTES:size]), data[size:]


class Messages:
    """The messages of one iterator.

    Args:    ring: the name of the loader's ring; form: what its batches are; None: it has none
    Pickles as plain values, towards a worker that is being started.
    """

    def __init__(self, ring: str | None, form: Form | None) -> None:
        self._ring = ring
        self._form = form

    def pack(self, item: Any, limit: int) -> bytes | None:
        """Return an item's message, no longer than `limit`; None: it has no such message.

        A batch counts as sent then.
        """
        if item is None:
            return note(_END)
        if type(item) is not tuple or len(item) != 2 or type(item[0]) is not int:
            return None
        number, what = item
        if type(what) is Batch:
            return self._pack_batch(number, what, limit)
        if type(what) is np.ndarray:
            body, kind = what.tobytes() if what.dtype == np.int64 else b"", _ARRAY
        else:
            body, kind = _numbers(what), _INDICES
        size = HEAD_BYTES + len(body)
        return _HEAD.pack(size, kind, number) + body if HEAD_BYTES < size <= limit else None

    def _pack_batch(self, number: int, batch: Batch, limit: int) -> bytes | None:
        place, lengths = batch.place, batch.lengths
        if type(place) is not Slot or place.ring.name != self._ring:
            return None
        if batch.form is not self._form and batch.form != self._form:
            return None
        numbers = [place.number, place.memory.nbytes]
        numbers += [lengths] if isinstance(lengths, int) else lengths
        size = HEAD_BYTES + 8 * len(numbers)
        if size > limit:
            return None
        place.send()
        return _HEAD.pack(size, _BATCH, number) + array("q", numbers).tobytes()

    def unpack(self, message: Message) -> Any:
        """Return the item that was packed; a batch as what the loop gets."""
        kind, number, body = message
        if kind == _BATCH:
            return number, self._whole(body)
        if kind == _ARRAY:
            return number, np.frombuffer(body, np.int64)
        if kind == _INDICES:
            return number, array("q", body).tolist()
        return None

    def _whole(self, body: bytes) -> Any:
        assert self._ring is not None and self._form is not None
        slot, size_bytes, *lengths = array("q", body)
        memory = ring_named(self._ring).hold(slot, size_bytes)
        return self._form.over(memory, lengths if self._form.shape is None else lengths[0])


def _numbers(what: Any) -> bytes:
    """Return a list of numbers as bytes; nothing if it is something else."""
    if type(what) is not list or not what or type(what[0]) is not int:
        return b""
    try:
        return array("q", what).tobytes()
    except (TypeError, OverflowError):  # other things behind the first, or too large ones
        return b""
