"""URLs and constructor keywords: which cluster is meant, and how this client behaves.

Role: client/filesystem.py asks THIS at construction. Nothing here opens a socket.

A URL is `ffs://host:port/path`; `ffs:///path` leaves the cluster to FFS_URL or the configuration.
Keywords are the names of the `[client]` options, and those of `[tls]` with `tls_` before them; a
misspelt one is a TypeError that names the nearest.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from ffs.config import ClientConfig, MetaConfig, TlsConfig, load
from ffs.errors import ConfigError

PROTOCOL: Final = "ffs"
_SCHEME: Final = "ffs://"
_SLASHES: Final = re.compile("//+")
CLIENT_KEYS: Final = tuple(f.name for f in dataclasses.fields(ClientConfig))
TLS_KEYS: Final = {f"tls_{f.name}": f"tls.{f.name}" for f in dataclasses.fields(TlsConfig)}
"""Keyword -> option of `[tls]`, which servers have too."""
FSSPEC_KEYS: Final = frozenset(
    {
        "add_docs",
        "add_aliases",
        "asynchronous",
        "batch_size",
        "listings_expiry_time",
        "loop",
        "max_paths",
        "skip_instance_cache",
        "use_listings_cache",
    }
)
"""What fsspec's own base classes take; everything else must be one of ours."""


def split_url(url: str) -> tuple[str, str]:
    """Return (authority, path) of a URL or a bare path; the path starts with a slash.

    What stands before a path is the cluster only with a port. Programs that take a URL apart as a
    path (Hugging Face's datasets, whoever uses pathlib) make `ffs://data/x` of `ffs:///data/x`.
    """
    if url.startswith(_SCHEME):
        authority, slash, path = url[len(_SCHEME) :].partition("/")
        if authority and path and ":" not in authority:
            return "", f"/{authority}/{path}"
        return authority, slash + path
    if url.startswith("ffs:"):
        return "", url[len("ffs:") :]
    return "", url


def clean_path(path: str) -> str:
    """Return the one spelling of a path: absolute, single slashes, none at the end."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    if not path.startswith("/"):
        path = "/" + path
    return path.rstrip("/") or "/"


def client_config(keywords: Mapping[str, object]) -> ClientConfig:
    """Return the client's options: configuration file, environment, then these keywords.

    Raises:  TypeError for a keyword that is neither ours nor fsspec's; ConfigError for a bad value
    """
    overrides: dict[str, object] = {}
    for name, value in keywords.items():
        if name in FSSPEC_KEYS or name in TLS_KEYS:
            continue
        if name not in CLIENT_KEYS:
            known = (*CLIENT_KEYS, *TLS_KEYS)
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise TypeError(
                f"FFSFileSystem got an unexpected keyword argument {name!r}; did you mean {near!r}?"
            )
        if value is not None:
            overrides[f"client.{name}"] = _text(value)
    config = load(overrides=overrides).client
    if config.hosts and not config.url:  # the first one names the cluster
        first, *others = config.hosts
        config = dataclasses.replace(config, url=f"{_SCHEME}{first}", hosts=tuple(others))
    if config.url:  # none at all is for the first I/O to tell: there may be none
        addresses_of(config)
    return config


def tls_config(keywords: Mapping[str, object]) -> TlsConfig:
    """Return which certificates to use, if any, from the same sources."""
    given = {key: keywords.get(name) for name, key in TLS_KEYS.items()}
    return load(overrides={k: _text(v) for k, v in given.items() if v is not None}).tls


def _text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def address_of(url: str) -> tuple[str, int]:
    """Return (host, port) of the metadata server that a URL names.

    Raises:  ConfigError when it names none
    """
    authority, _ = split_url(url)
    host, colon, port = authority.rpartition(":")
    if not colon:
        host, port = authority, str(MetaConfig().port)
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigError(
            f"no metadata server in {url!r}" if url else "no metadata server is configured",
            hint="write ffs://host:port/path, pass url=, or set FFS_URL to what `ffs up` printed",
        )
    return host, int(port)


def addresses_of(config: ClientConfig) -> list[tuple[str, int]]:
    """Return where the metadata servers are that the options name, in that order.

    Raises:  ConfigError when they name none
    """
    return [address_of(url) for url in (config.url, *(f"{_SCHEME}{h}" for h in config.hosts))]


def url_keywords(path: Any) -> dict[str, str]:
    """Return the constructor keywords that a URL implies: the cluster, if it names one."""
    authority, _ = split_url(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else ("", "")
    if authority:
        return {"url": f"{_SCHEME}{authority}"}
    # The environment is read here too, so that fsspec's instance cache keeps clusters apart.
    named = os.environ.get("FFS_URL", "")
    return {"url": named.rstrip("/")} if named else {}
