"""Run one target under atheris: python -m tests.fuzz.run TARGET [libFuzzer options] [CORPUS...].

`.ci/fuzz.sh` calls this by a file that it names in FFS_FUZZ_PROGRAM, for libFuzzer to start it
again. One input: the same with a file in place of the corpus.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import types

import atheris

from ffs.rpc.codec import METHODS
from ffs.rpc.schema import codec_of
from tests.fuzz.mutate import value_changed
from tests.fuzz.targets import TARGETS

WATCHED = ("/ffs/rpc/", "/ffs/handshake.py", "/ffs/errors.py", "<ffs.rpc.schema ")
"""Where coverage counts: in what reads a peer's bytes, the functions that it generates included."""


def watch() -> None:
    """Instrument the watched functions, as they are: an import hook never sees generated ones."""
    for method in METHODS.values():
        codec_of(method.request)
        codec_of(method.reply)
    functions = [
        found
        for found in gc.get_objects()
        if isinstance(found, types.FunctionType)
        and any(part in found.__code__.co_filename for part in WATCHED)
    ]
    for function in functions:
        atheris.instrument_func(function)


def mutate(data: bytes, size_max: int, seed: int) -> bytes:
    """Change a message's value, or any bytes where there is none or chance says so."""
    dice = random.Random(seed)
    if dice.random() < 0.7:
        head, line_end, packed = data.partition(b"\n") if b"\n" in data[:20] else (b"", b"", data)
        try:
            return (head + line_end + value_changed(packed, dice))[:size_max]
        except ValueError:
            pass
    return bytes(atheris.Mutate(data, size_max))


def main() -> None:
    """Fuzz the target that the first argument names."""
    name = sys.argv.pop(1)
    sys.argv[0] = os.environ.get("FFS_FUZZ_PROGRAM", sys.argv[0])
    options = {"custom_mutator": mutate} if name in ("request", "reply") else {}
    watch()
    atheris.Setup(sys.argv, TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
