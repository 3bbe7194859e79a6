"""`ffs pack`: from other formats into records, and back; client/records/pack/ does the work."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.progress import progress_bar
from ffs.cli.remote import file_system, is_remote, parse
from ffs.client.parallel import Stop
from ffs.client.records.pack.job import SOURCES, TARGETS, Conversion
from ffs.client.records.pack.places import Place

SHARD_MIB = 256
JOBS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare pack's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="a file, or a directory of them")
    parser.add_argument("target", metavar="TARGET", help="a directory for the shards")
    parser.add_argument(
        "--from", dest="kind", choices=SOURCES, default="", help="else told by the names of files"
    )
    parser.add_argument(
        "--to", choices=TARGETS, default="ffs", help="what to make (default ffs, our records)"
    )
    parser.add_argument(
        "--column", default="", metavar="NAME", help="make samples of this column of a table alone"
    )
    parser.add_argument(
        "--shard",
        type=_mebibytes,
        default=SHARD_MIB << 20,
        metavar="MIB",
        help=f"bytes of the source that become one file (default {SHARD_MIB} MiB)",
    )
    parser.add_argument(
        "-j", "--jobs", type=_jobs, default=JOBS, metavar="N", help=f"at a time (default {JOBS})"
    )


def _jobs(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("a number from 1 to 64 is needed")
    return int(text)


def _mebibytes(text: str) -> int:
    try:
        size = int(float(text) * (1 << 20))
    except ValueError:
        size = 0
    if not 0 < size <= 1 << 40:
        raise argparse.ArgumentTypeError("a number of MiB above 0 is needed")
    return size


def pack(args: argparse.Namespace) -> int:
    """Make records of SOURCE: files in the directory TARGET, which training reads as one dataset.

    SOURCE is a directory of files, JSONL, Parquet, Arrow, WebDataset's tar, MosaicML's MDS,
    FFRecord or our own records; with --to it becomes any of these again. A path that starts with
    ffs:// is in a cluster, any other is local. A run that was killed is taken up by the same
    command again: shards that are there stay.
    """
    started = time.monotonic()
    job = Conversion(
        source=_place(args.source, args),
        target=_place(args.target, args),
        source_kind=args.kind,
        target_kind=args.to,
        shard_bytes=args.shard,
        column=args.column,
        jobs=args.jobs,
    )
    size = job.prepare()
    with progress_bar(args, "packing", size) as progress:
        report = job.run(progress, Stop())
    if args.json:
        output.print_json(asdict(report) | {"seconds": round(time.monotonic() - started, 3)})
    return EXIT_DONE


def _place(text: str, args: argparse.Namespace) -> Place:
    if not is_remote(text):
        return Place(None, text)
    remote = parse(text, args)
    return Place(file_system(remote, args), remote.path)


ACTIONS = {"": Action(pack, add_arguments, "ffs pack ./images ffs:///data/train")}
