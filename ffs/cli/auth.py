"""`ffs auth user|token|revoke|ca`: who may use the cluster without being root there.

All but `ca` (ffs/cli/auth_ca.py) takes the cluster key. A token is issued here and goes to its user
by a way of your choice; a client takes it as token_file= or FFS_TOKEN_FILE in place of the key.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import asdict
from typing import Final

from ffs.cli import auth_ca, output
from ffs.cli.action import Action
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import cluster
from ffs.cli.units import duration_s
from ffs.client.users import Users
from ffs.errors import ConfigError
from ffs.key import ClusterKey

_TOKEN_ID: Final = re.compile(r"[0-9a-f]{32}")
_LIFE_S_DEFAULT: Final = 30 * 86_400


def _identity(text: str) -> int:
    """`1001` -> 1001, for argparse: a uid or gid."""
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise argparse.ArgumentTypeError(f"{text!r} is no uid or gid")
    return int(text)


def add_user_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `auth user` takes."""
    parser.add_argument("what", choices=("add", "list", "remove"))
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a user; not with list")
    parser.add_argument("--uid", type=_identity, metavar="N", help="add: whose files it owns")
    parser.add_argument(
        "--gid",
        type=_identity,
        action="append",
        default=[],
        metavar="N",
        help="add: a group; may be repeated, the first is that of new files (else as the uid)",
    )


def user(args: argparse.Namespace) -> int:
    """Make users known, list them, or remove one with all its tokens.

    To add one again changes its groups, for tokens that are issued from then on.
    """
    users = Users(cluster(args).core.meta)
    if args.what == "list":
        return _list(args, users)
    if args.name is None:
        raise ConfigError(f"say which user to {args.what}")
    if args.what == "add":
        if args.uid is None:
            raise ConfigError("say which --uid the user has")
        users.add(args.name, args.uid, args.gid or [args.uid])
    else:
        users.remove(args.name)
    if args.json:
        output.print_json({args.what: args.name})
    return EXIT_DONE


def _list(args: argparse.Namespace, users: Users) -> int:
    found = users.all()
    if args.json:
        output.print_json([asdict(one) for one in found])
    else:
        rows = [(one.name, one.uid, " ".join(map(str, one.gids))) for one in found]
        output.print_table(("user", "uid", "groups"), rows)
    return EXIT_DONE


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `auth token` takes."""
    parser.add_argument("user", metavar="USER")
    parser.add_argument("--job", default="", metavar="NAME", help="what it is for, in logs")
    parser.add_argument(
        "--expires",
        type=duration_s,
        default=_LIFE_S_DEFAULT,
        metavar="TIME",
        help="how long it counts: 90s, 12h, 7d; 30d unless said",
    )
    parser.add_argument(
        "--same-host",
        action="store_true",
        help="may read the files of daemons on its own host directly, other users' data included",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a new file for it, for you alone (else stdout)"
    )


def token(args: argparse.Namespace) -> int:
    """Issue a token for a user.

    Whoever holds it is that user until it is over or revoked, so treat it as you treat a key.
    """
    fs = cluster(args)
    if not fs.config.key_file:
        raise ConfigError("tokens are issued by the cluster key", hint="give it with --key-file")
    key = ClusterKey.load(fs.config.key_file)
    users = Users(fs.core.meta)
    issued, claims = users.issue(
        key,
        args.user,
        job=args.job,
        life_ms=args.expires * 1_000,
        same_host=args.same_host,
    )
    if args.output:
        _write(args.output, issued.export())
    report = {"token": claims.name, "user": claims.user, "expires": claims.expires_ms / 1e3}
    if args.json:
        secret = {"file": args.output} if args.output else {"secret": issued.export().strip()}
        output.print_json(report | secret)
    elif args.output:
        until = time_text(claims.expires_ms / 1e3)
        output.print_line(f"token {claims.name} of {claims.user} until {until}: {args.output}")
    else:
        output.print_line(issued.export().strip())
    return EXIT_DONE


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)


def add_revoke_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `auth revoke` takes."""
    parser.add_argument("what", metavar="TOKEN|USER", help="a token's id, or whose they are")


def revoke(args: argparse.Namespace) -> int:
    """Let a token, or all tokens that a user has now, count no more.

    Servers refuse it within seconds, on connections that are open as well.
    """
    users = Users(cluster(args).core.meta)
    if _TOKEN_ID.fullmatch(args.what):
        users.revoke_token(bytes.fromhex(args.what))
    else:
        users.revoke_user(args.what)
    if args.json:
        output.print_json({"revoked": args.what})
    return EXIT_DONE


ACTIONS = {
    "user": Action(user, add_user_arguments, "ffs auth user add ann --uid 1001 --gid 100"),
    "token": Action(token, add_token_arguments, "ffs auth token ann --job train-7 --expires 7d"),
    "revoke": Action(revoke, add_revoke_arguments, "ffs auth revoke ann"),
    "ca": Action(auth_ca.ca, auth_ca.add_arguments, "ffs auth ca init /root/ffs-ca", cluster=False),
}
