"""A keyed permutation of 0 .. length - 1 that nobody has to store: the order of an epoch.

Role: client/torch/sampler.py asks it which sample stands at a position. Any position costs the
same, so that going on at sample 10^9 is one more block and not a replay of all before it.

The permutation is specified here, with test vectors in tests/unit/client/test_permutation.py, so
that no library upgrade changes the order of a run that is resumed:

1. bits = max(6, bit length of length - 1); the value's upper `high` = ceil(bits / 2) bits are H,
   its lower `low` = floor(bits / 2) bits are L.
2. state = mix64(state + GOLDEN64 + part) for part in seed, epoch, length, from state = 0;
   key i = mix64(state + (i + 1) * GOLDEN64) for i in 0 .. 9 (mix64, GOLDEN64: ffs/layout.py).
3. Rounds i = 0 .. 9: H ^= f(L, key i, high) if i is even, L ^= f(H, key i, low) if it is odd, with
   x = (value + key) * GOLDEN64; x ^= x >> 32; x *= 0xD6E8FEB86659FD93; f = x >> (64 - width).
   All sums and products are modulo 2^64.
4. A result of `length` or more goes through step 3 again, until it is below (cycle walking). From
   33 samples on the domain is less than twice the length, so that takes one more step on average at
   most; it comes to an end since the walk leads along a cycle that holds its start.

It is a Feistel network: a bijection whatever f is. It shuffles; it does not hide anything.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs.errors import InvalidError
from ffs.layout import GOLDEN64, mix64

ROUNDS: Final = 10
"""Six pass every test of ours already; four more are the margin."""
BITS_MIN: Final = 6
"""On three bits and the like even twelve rounds prefer some orders to others."""
LENGTH_MAX: Final = 1 << 62

_MASK64: Final = (1 << 64) - 1
_GOLDEN: Final = np.uint64(GOLDEN64)
_FACTOR: Final = np.uint64(0xD6E8FEB86659FD93)
_HALF: Final = np.uint64(32)

Positions = npt.NDArray[np.uint64]


class Permutation:
    """The order of one epoch: sample = permutation[position], for arrays of positions.

    Threads: any; Fork: safe (plain numbers)
    """

    def __init__(self, length: int, *, seed: int, epoch: int) -> None:
        if not 0 <= length <= LENGTH_MAX:
            raise InvalidError(f"length is {length}, expected 0 .. {LENGTH_MAX}")
        for name, value in (("seed", seed), ("epoch", epoch)):
            if not 0 <= value <= _MASK64:
                raise InvalidError(f"{name} is {value}, expected 0 .. 2^64 - 1")
        self.length = length
        bits = max(BITS_MIN, (length - 1).bit_length())
        self._low_bits = bits // 2
        self._high_bits = bits - self._low_bits
        state = 0
        for part in (seed, epoch, length):
            state = mix64(state + GOLDEN64 + part)
        keys = [mix64(state + i * GOLDEN64) for i in range(1, ROUNDS + 1)]
        self._keys: list[Any] = [np.uint64(key) for key in keys]

    def __getitem__(self, positions: Positions) -> npt.NDArray[np.int64]:
        """Return the samples at `positions`, each of which must be below the length.

        Copies:  one new array; about 0.1 us a sample in blocks of thousands
        """
        values = self._encrypt(positions)
        length = np.uint64(self.length)
        outside = np.flatnonzero(values >= length)
        while outside.size:
            again = self._encrypt(values[outside])
            values[outside] = again
            outside = outside[again >= length]
        return values.view(np.int64)

    def _encrypt(self, values: Positions) -> Positions:
        """Send values below 2^bits to other such values, one to one."""
        low_bits = np.uint64(self._low_bits)
        high = values >> low_bits
        low = values & np.uint64((1 << self._low_bits) - 1)
        high_shift, low_shift = np.uint64(64 - self._high_bits), np.uint64(64 - self._low_bits)
        scratch, shifted = np.empty_like(high), np.empty_like(high)
        for i in range(0, ROUNDS, 2):
            _stir(low, high, self._keys[i], high_shift, scratch, shifted)
            _stir(high, low, self._keys[i + 1], low_shift, scratch, shifted)
        high <<= low_bits
        high |= low
        return high


def _stir(
    source: Positions,
    target: Positions,
    key: np.uint64,
    shift: np.uint64,
    scratch: Positions,
    shifted: Positions,
) -> None:
    """Do target ^= f(source, key), see the module's step 3, in memory that is there already."""
    np.add(source, key, out=scratch)
    np.multiply(scratch, _GOLDEN, out=scratch)
    np.right_shift(scratch, _HALF, out=shifted)
    np.bitwise_xor(scratch, shifted, out=scratch)
    np.multiply(scratch, _FACTOR, out=scratch)
    np.right_shift(scratch, shift, out=scratch)
    np.bitwise_xor(target, scratch, out=target)
