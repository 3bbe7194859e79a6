"""`ffs auth ca init|issue`: a certificate authority of one's own, for TLS between all processes.

Next hop: ffs/certificates.py. No server is asked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ffs.cli import output
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.units import duration_s
from ffs.errors import ConfigError
from ffs.tls import Role


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `auth ca` takes."""
    parser.add_argument("what", choices=("init", "issue"), help="an authority, or a certificate")
    parser.add_argument("directory", type=Path, metavar="DIR", help="of the authority")
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="what to issue it for")
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        choices=[role.value for role in Role],
        help="what its holder may be; may be given several times",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (else the authority's)")
    parser.add_argument(
        "--ttl", type=duration_s, metavar="TIME", help="how long it is good (3650d; 365d)"
    )


def ca(args: argparse.Namespace) -> int:
    """Make a certificate authority, and certificates for TLS between all processes.

    `init DIR` makes DIR/ca.crt, which every process needs (tls.ca_file), and DIR/ca.key, which only
    issuing needs. `issue DIR NAME --role ROLE` makes NAME.crt (tls.cert_file) and NAME.key
    (tls.key_file); what is there under that name is replaced, and running processes take it up.
    """
    from ffs import certificates

    if args.what == "init":
        if args.role or args.out:
            raise ConfigError("an authority has no role, and no other directory than its own")
        ttl_s = args.ttl or certificates.AUTHORITY_TTL_S
        made = certificates.make_authority(args.directory, args.name or "FFS", ttl_s=ttl_s)
    else:
        ttl_s = args.ttl or certificates.CERTIFICATE_TTL_S
        roles = [Role(role) for role in args.role]
        made = certificates.issue(args.directory, args.name, roles, out=args.out, ttl_s=ttl_s)
    report = {
        "cert_file": str(made.cert_file),
        "key_file": str(made.key_file),
        "expires": made.expires,
    }
    if args.json:
        output.print_json(report)
        return EXIT_DONE
    for key, value in (report | {"expires": time_text(made.expires)}).items():
        output.print_line(f"{key:<10} {value}")
    return EXIT_DONE
