"""A client in a process of its own, told what to do line by line: the other one of two clients.

Reads one JSON array [method, *arguments] a line and answers one JSON value: ["ok", value] or
["error", class]. Methods are those of the file system object by name, and: `open` keeps a file open
under its path, `held` reads it from the start. Bytes travel as Latin-1 text.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import FFSError


def main() -> None:
    """Serve until stdin ends."""
    fs = FFSFileSystem(attr_ttl_ms=int(sys.argv[1]))
    held: dict[str, Any] = {}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = ["ok", _plain(_do(fs, held, name, arguments))]
        except FFSError as error:
            answer = ["error", type(error).__name__]
        print(json.dumps(answer), flush=True)


def _do(fs: FFSFileSystem, held: dict[str, Any], name: str, arguments: list[Any]) -> Any:
    if name == "open":
        held[arguments[0]] = fs.open(arguments[0], "rb")
        return None
    if name == "held":
        held[arguments[0]].seek(0)
        return held[arguments[0]].read()
    if name == "create":
        with fs.open(arguments[0], "xb") as file:
            file.write(b"theirs")
        return None
    return getattr(fs, name)(*arguments)


def _plain(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


if __name__ == "__main__":
    main()
