"""Mutations that keep an input a message: a value inside the msgpack changes, not its bytes.

Bytes changed blindly nearly always end in the unpacker; one value replaced reaches what checks it.
"""

from __future__ import annotations

import random
from typing import Any

import msgpack

INTERESTING: tuple[Any, ...] = (
    *(0, 1, -1, 127, 128, 255, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(None, True, False, 0.5, "", "x", "mkdir", b"", b"/", b"/a/b", b"..", b"\0", bytes(16)),
    *([], [[]], {}, {"path": 1}, {"message": 2}),
)


def value_changed(packed: bytes, dice: random.Random) -> bytes:
    """Return the msgpack value with one thing in it changed; ValueError if it is none."""
    try:
        value = msgpack.unpackb(packed, strict_map_key=False)
        return bytes(msgpack.packb(_changed(value, dice)))
    except Exception as error:  # whatever the library makes of bytes that are no value
        raise ValueError("no msgpack value") from error


def _changed(value: Any, dice: random.Random) -> Any:
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        match dice.randrange(12):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + [value[at]] * dice.randrange(2, 5) + value[at + 1 :]
            case 2:
                return value[:at] + [dice.choice(INTERESTING)] + value[at:]
            case _:
                return [*value[:at], _changed(value[at], dice), *value[at + 1 :]]
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        return {**value, key: _changed(value[key], dice)}
    if isinstance(value, bytes) and value and dice.random() < 0.5:
        at = dice.randrange(len(value))
        return value[:at] + dice.randbytes(dice.randrange(3)) + value[at + 1 :]
    return dice.choice(INTERESTING)
