"""From a path on the command line to a file system of the cluster it means.

`ffs://HOST:PORT/path` names its cluster; `ffs:///path` and a bare `/path` mean the one of --url or
$FFS_URL. File systems are made once per cluster and process; nothing connects before it is used.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ffs.config import load
from ffs.errors import ConfigError

SCHEME = "ffs://"


@dataclass(frozen=True, slots=True)
class Remote:
    """A path in a cluster. `url` is `ffs://host:port`; empty: whatever the configuration says."""

    url: str
    path: str


def is_remote(text: str) -> bool:
    """Whether a command-line path means FFS where local paths are possible too."""
    return text.startswith(SCHEME)


def parse(text: str, args: argparse.Namespace) -> Remote:
    """Split a command-line path into its cluster and its absolute path."""
    address, path = "", text
    if is_remote(text):
        address, slash, rest = text[len(SCHEME) :].partition("/")
        path = slash + rest
    elif not text.startswith("/"):
        raise ConfigError(
            f"{text!r} is not a path in the file system",
            hint="write /path, ffs:///path or ffs://HOST:PORT/path",
        )
    url = SCHEME + address if address else (args.url or "")
    return Remote(url.rstrip("/"), path or "/")


def overrides(args: argparse.Namespace) -> dict[str, object]:
    """The configuration keys given by --set, as ffs.config.load takes them."""
    found: dict[str, object] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {text!r} is not TABLE.KEY=VALUE")
        found[key] = value
    return found


_made: dict[str, Any] = {}


def file_system(remote: Remote, args: argparse.Namespace) -> Any:
    """The file system of a path's cluster, as command line and configuration describe it."""
    if remote.url not in _made:
        from ffs.client.filesystem import FFSFileSystem

        _made[remote.url] = FFSFileSystem(skip_instance_cache=True, **client_options(remote, args))
    return _made[remote.url]


def client_options(remote: Remote, args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of FFSFileSystem: what --config, --set and the flags change of its own defaults."""
    usual = asdict(load().client)
    wanted = asdict(load(args.config_file, overrides=overrides(args)).client)
    options = {key: value for key, value in wanted.items() if value != usual[key]}
    if remote.url:
        options["url"] = remote.url
    if args.key_file:
        options["key_file"] = args.key_file
    return options


def into_directory(target: str, is_directory: bool, many: bool) -> bool:
    """Whether sources go *into* the target, as cp and mv decide it."""
    if is_directory:
        return True
    if many or target.endswith("/"):
        raise NotADirectoryError(20, "Not a directory", target)
    return False


def jsonable(info: Mapping[str, Any]) -> dict[str, Any]:
    """An fsspec info dictionary with only what JSON can hold."""
    return {k: v.timestamp() if isinstance(v, datetime.datetime) else v for k, v in info.items()}


def when(info: Mapping[str, Any]) -> str:
    """The modification time of an info dictionary as `YYYY-MM-DD HH:MM:SS`, local time."""
    value = info.get("mtime", 0)
    seconds = value.timestamp() if isinstance(value, datetime.datetime) else float(value or 0)
    local = datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S")
