"""Where a chunk lives: a pure function of its blob's layout and an immutable chain table.

The permutation is specified here and in docs/wire.md, with test vectors in
tests/unit/test_layout.py, so that no library upgrade can move data: a splitmix64 stream seeded with
the layout's seed drives a forward Fisher-Yates shuffle of the table, of which the first `stripe`
places are used; chunk i goes to place i mod stripe.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ffs.types import BLOCK_BYTES

_MASK64 = (1 << 64) - 1
GOLDEN64 = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    """Return the splitmix64 finaliser of a 64-bit value (a bijection)."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


@lru_cache(maxsize=65_536)
def stripe_places(table_chains: int, stripe: int, seed: int) -> tuple[int, ...]:
    """Return which places of a chain table a blob is spread over, in chunk order.

    Args:    table_chains: chains in the table, >= 1; stripe: 0 means all of them
    """
    assert table_chains >= 1 and stripe >= 0
    wanted = table_chains if stripe == 0 else min(stripe, table_chains)
    if table_chains == 1:
        return (0,)
    places = list(range(table_chains))
    state = seed & _MASK64
    for i in range(wanted):
        state = (state + GOLDEN64) & _MASK64
        j = i + mix64(state) % (table_chains - i)
        places[i], places[j] = places[j], places[i]
    return tuple(places[:wanted])


def chain_of_chunk(chains: Sequence[int], stripe: int, seed: int, chunk_index: int) -> int:
    """Return the chain that holds a chunk of a blob laid out over `chains`."""
    places = stripe_places(len(chains), stripe, seed)
    return chains[places[chunk_index % len(places)]]


def chunk_count(length_bytes: int, chunk_size_bytes: int) -> int:
    """Return how many chunks `length_bytes` fill, the last one perhaps in part."""
    return -(-length_bytes // chunk_size_bytes)


def chunk_length(length_bytes: int, chunk_size_bytes: int, chunk_index: int) -> int:
    """Return the stored length of one chunk of a blob of `length_bytes`."""
    return min(chunk_size_bytes, length_bytes - chunk_index * chunk_size_bytes)


def block_count(length_bytes: int) -> int:
    """Return how many checksum blocks cover `length_bytes`."""
    return -(-length_bytes // BLOCK_BYTES)


def block_seed(blob: int, chunk_index: int, block_index: int) -> int:
    """Return the CRC32C start value of one block, so that a misplaced block never verifies."""
    inner = mix64((blob + GOLDEN64) & _MASK64)
    return mix64((inner + ((chunk_index << 32) | block_index)) & _MASK64) & 0xFFFFFFFF
