"""`ffs meta`: one metadata server (server/meta/__main__.py); its database's backups."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the server takes."""
    from ffs.server.meta import __main__ as server

    server.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run one metadata server until it is told to stop; print `ready HOST:PORT` once it serves.

    `ffs meta backup`, `restore` and `inspect` deal with its database.
    """
    from ffs.server.meta import __main__ as server

    return server.serve(args)


# --- backups --------------------------------------------------------------------------------------


def add_backup_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `meta backup` takes."""
    parser.add_argument(
        "database", metavar="DATABASE", help="a server's --data directory, or postgresql://..."
    )
    parser.add_argument("file", metavar="FILE", help="to be made; nothing is replaced")


def backup(args: argparse.Namespace) -> int:
    """Write all metadata of a database, as it is at one moment, to a new file.

    The server may go on meanwhile. `ffs up --data DIR` keeps its metadata in DIR/meta. A backup
    holds names and where contents lie, not the contents.
    """
    from ffs.server.meta.backup import backup as write

    with progress_bar(args, "backing up"):
        info = write(args.database, Path(args.file))
    _report(info, args)
    return EXIT_DONE


def add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `meta restore` takes."""
    parser.add_argument("file", metavar="FILE", help="made by `ffs meta backup`")
    parser.add_argument(
        "database", metavar="DATABASE", help="an empty directory or database, as for backup"
    )


def restore(args: argparse.Namespace) -> int:
    """Fill an empty directory or database from a backup, whole or not at all.

    It may be of the other engine than the backup's. Then start the server on it, and run `ffs
    fsck`: what was written after the backup has lost its name.
    """
    from ffs.server.meta.backup import restore as fill

    with progress_bar(args, "restoring"):
        info = fill(Path(args.file), args.database)
    _report(info, args)
    return EXIT_DONE


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `meta inspect` takes."""
    parser.add_argument("file", metavar="FILE", help="made by `ffs meta backup`")


def inspect(args: argparse.Namespace) -> int:
    """Check a backup from end to end and say what it holds."""
    from ffs.server.meta.backup import inspect as check

    with progress_bar(args, "checking"):
        info = check(Path(args.file))
    _report(info, args)
    return EXIT_DONE


def _report(info: Any, args: argparse.Namespace) -> None:
    report = {
        "file": str(info.path),
        "size_bytes": info.size_bytes,
        "cluster": info.heading.cluster_id.hex(),
        "schema_version": info.heading.schema_version,
        "made": info.heading.time_ns / 1e9,
        "inodes": info.rows["inodes"],
        "blobs": info.rows["blobs"],
    }
    if args.json:
        output.print_json(report)
        return
    shown = {
        "size_bytes": output.human_bytes(info.size_bytes),
        "made": time_text(info.heading.time_ns / 1e9),
    }
    for key, value in (report | shown).items():
        output.print_line(f"{key.removesuffix('_bytes'):<15} {value}")


EXAMPLE = "ffs meta --data /var/lib/ffs --key-file cluster.key --host node1 --port 7411"
ACTIONS = {
    "": Action(run, add_arguments, EXAMPLE, cluster=False, reports=False),
    "backup": Action(
        backup, add_backup_arguments, "ffs meta backup /tmp/ffs/meta names.ffsbackup", cluster=False
    ),
    "restore": Action(
        restore, add_restore_arguments, "ffs meta restore names.ffsbackup /new/meta", cluster=False
    ),
    "inspect": Action(
        inspect, add_inspect_arguments, "ffs meta inspect names.ffsbackup", cluster=False
    ),
}
