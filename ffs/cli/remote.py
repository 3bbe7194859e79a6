"""From a path on the command line to a file system of the cluster it means.

`ffs://HOST:PORT/path` names its cluster; `ffs:///path` and a bare `/path` mean the one of --url or
$FFS_URL. File systems are made once per cluster and command; making one asks the cluster for its
routing, so an address where nobody answers is noticed, and said on a terminal, before any work.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ffs.cli.outcome import EXIT_DONE, EXIT_FAILED, complain, describe
from ffs.cli.progress import waiting_notice
from ffs.client.options import clean_path
from ffs.config import ClientConfig, load
from ffs.errors import AuthError, ConfigError, FFSError, NotFoundError

SCHEME = "ffs://"
STANDARD = "-"
"""As a path: standard input or output."""


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
    return Remote(url.rstrip("/"), clean_path(path))


def overrides(args: argparse.Namespace) -> dict[str, object]:
    """The configuration keys given by --set, as ffs.config.load takes them."""
    found: dict[str, object] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {text!r} is not TABLE.KEY=VALUE")
        found[key] = value
    return found


# --- file systems ---------------------------------------------------------------------------------

_made: dict[str, Any] = {}
"""The file systems of the command that runs, by their clusters' URLs."""


def file_system(remote: Remote, args: argparse.Namespace) -> Any:
    """The file system of a path's cluster, as command line and configuration describe it.

    Raises: UnavailableError, DeadlineError or AuthError if the cluster cannot be talked to
    """
    if remote.url not in _made:
        from ffs.client.filesystem import FFSFileSystem

        fs = FFSFileSystem(skip_instance_cache=True, **client_options(remote, args))
        fs.config = patience(fs.config, args.timeout)
        try:
            address = fs.config.url.removeprefix(SCHEME)
            with waiting_notice(args, f"the metadata server at {address}"):
                fs.core.meta.route()
        except BaseException:
            fs.close()
            raise
        _made[remote.url] = fs
    return _made[remote.url]


def cluster(args: argparse.Namespace) -> Any:
    """The file system of the cluster that the options name, for commands without a path."""
    return file_system(Remote((args.url or "").rstrip("/"), "/"), args)


def same_cluster(one: Any, other: Any) -> bool:
    """Whether two file systems are of one cluster, whatever their addresses are."""
    if one is other:
        return True
    return bool(one.core.meta.cluster().cluster_id == other.core.meta.cluster().cluster_id)


def close_all(*, say_goodbye: bool = True) -> None:
    """Close what the command has opened; without a goodbye servers find out by themselves."""
    while _made:
        _, fs = _made.popitem()
        if say_goodbye:
            fs.close()


def client_options(remote: Remote, args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of FFSFileSystem: what --config, --set and the flags change of its own defaults."""
    usual, wanted = load(), load(args.config_file, overrides=overrides(args))
    options = _changes(usual.client, wanted.client)
    options |= {f"tls_{key}": value for key, value in _changes(usual.tls, wanted.tls).items()}
    if remote.url:
        options["url"] = remote.url
    if args.key_file or args.token_file:  # what is typed counts, whatever the environment says
        options["key_file"] = args.key_file or ""
        options["token_file"] = args.token_file or ""
    return options


def _changes(usual: Any, wanted: Any) -> dict[str, Any]:
    before = asdict(usual)
    return {key: value for key, value in asdict(wanted).items() if value != before[key]}


def patience(config: ClientConfig, timeout_s: float | None) -> ClientConfig:
    """The configuration with every deadline at --timeout.

    Why: here and not by --set, since whoever types a short one does not want to sit a fail-over
    out, which configuration insists on.
    """
    if timeout_s is None:
        return config
    timeout_ms = max(1, round(timeout_s * 1e3))
    return replace(
        config,
        meta_deadline_ms=timeout_ms,
        read_deadline_ms=timeout_ms,
        write_deadline_ms=timeout_ms,
        connect_ms=min(config.connect_ms, timeout_ms),
    )


# --- several paths --------------------------------------------------------------------------------


def expand(text: str, args: argparse.Namespace) -> list[tuple[Any, str]]:
    """(file system, path) of everything that a path, or a pattern with *, ? or [...], means.

    A name that exists as it is written is no pattern.
    Raises: NotFoundError for a pattern that nothing matches
    """
    from fsspec.core import has_magic

    remote = parse(text, args)
    fs = file_system(remote, args)
    if not has_magic(remote.path) or fs.lexists(remote.path):
        return [(fs, remote.path)]
    found = sorted(fs.glob(remote.path))
    if not found:
        raise NotFoundError("nothing matches the pattern", path=remote.path)
    return [(fs, path) for path in found]


def literal(text: str, args: argparse.Namespace) -> tuple[Any, str]:
    """(file system, path) of a path in which * and ? are letters."""
    remote = parse(text, args)
    return file_system(remote, args), remote.path


@dataclass(slots=True)
class Failures:
    """Counts what went wrong with some of several paths."""

    count: int = 0

    @contextlib.contextmanager
    def told(self, args: argparse.Namespace, *, missing_ok: bool = False) -> Iterator[None]:
        """Tell what the block fails of and go on behind it.

        Raises:  what would meet the other paths too: no cluster, no key, wrong usage
        """
        try:
            yield
        except (ConfigError, AuthError, ConnectionError, TimeoutError):
            raise
        except (FFSError, OSError) as error:
            if not (missing_ok and isinstance(error, NotFoundError)):
                complain(args, describe(error))
                self.count += 1

    @property
    def status(self) -> int:
        """The exit status that this makes."""
        return EXIT_FAILED if self.count else EXIT_DONE


def for_each(
    texts: Sequence[str],
    args: argparse.Namespace,
    do: Callable[[Any, str], None],
    *,
    patterns: bool = True,
    missing_ok: bool = False,
) -> int:
    """Do something for each path; one that fails is told and does not keep the others from theirs.

    Args:    patterns: whether they are expanded; missing_ok: what is not there is passed over
    Returns: the exit status
    """
    failures = Failures()
    for text in texts:
        found: list[tuple[Any, str]] = []
        with failures.told(args, missing_ok=missing_ok):
            found = expand(text, args) if patterns else [literal(text, args)]
        for fs, path in found:
            with failures.told(args, missing_ok=missing_ok):
                do(fs, path)
    return failures.status


def into_directory(target: str, is_directory: bool, many: bool) -> bool:
    """Whether sources go *into* the target, as cp, mv and ln decide it."""
    if is_directory:
        return True
    if many or target.endswith("/"):
        raise NotADirectoryError(20, "Not a directory", target)
    return False
