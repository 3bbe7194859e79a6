"""`ffs doctor`: what is wrong with this host and this cluster, and what to change."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.checks.cluster import ServerStatus, check_cluster
from ffs.cli.checks.finding import Finding, Verdict
from ffs.cli.checks.host import check_host
from ffs.cli.checks.path import check_path
from ffs.cli.outcome import EXIT_DONE, EXIT_FAILED
from ffs.cli.remote import cluster
from ffs.client.core import Core, credential_of
from ffs.errors import FFSError
from ffs.rpc.addresses import parse_address
from ffs.rpc.blocking import RpcClient
from ffs.seams import Clock
from ffs.tls import Tls
from ffs.wire.status import STATUS, StatusReply, StatusRequest

HOSTS_MAX: Final = 64
"""The way to so many hosts is looked at: others are most likely behind the same switches."""
_ASK_MS: Final = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Doctor has no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Look at this host, the way from it to each daemon, and the cluster; say what to change.

    The exit status is 1 if there is a problem. Run it on a client that is slow, and on the hosts of
    daemons: each sees its own links and the ways that begin at it. Nothing is changed.
    """
    fs = cluster(args)
    servers = _ask(fs)
    findings = [*check_host(fs.config), *_check_paths(servers[0].reply), *check_cluster(servers)]
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    if args.json:
        found = [_as_json(finding) for finding in findings]
        output.print_json({"problems": problems, "findings": found})
    else:
        _print(findings, problems)
    return EXIT_FAILED if problems else EXIT_DONE


def _ask(fs: Any) -> list[ServerStatus]:
    """Ask every metadata server that answers, the one that we have first.

    Raises:  as any call, if none does
    """
    core: Core = fs.core
    first = core.config.url.removeprefix("ffs://")
    found = [_timed(first, core.clock, lambda: core.meta.call(STATUS, StatusRequest()))]
    own = {node.address for node in found[0].reply.nodes if node.role == "meta"}
    for address in sorted(own - {first}) if len(own) > 1 else ():
        with contextlib.suppress(FFSError):  # the status says that it is down
            found.append(_ask_one(fs, address))
    return found


def _ask_one(fs: Any, address: str) -> ServerStatus:
    core: Core = fs.core
    rpc = RpcClient(
        [parse_address(address)],
        credential_of(core.config),
        connect_ms=core.config.connect_ms,
        tls=Tls.configured(fs.tls) if fs.tls is not None else None,
    )
    with contextlib.closing(rpc):
        return _timed(
            address,
            core.clock,
            lambda: rpc.call(STATUS, StatusRequest(), deadline_ms=_ASK_MS),
        )


def _timed(address: str, clock: Clock, ask: Any) -> ServerStatus:
    """Ask, and hold the server's clock against ours: it told it at some time in between."""
    before_ns = clock.wall_ns()
    reply: StatusReply = ask()
    after_ns = clock.wall_ns()
    middle_ns = (before_ns + after_ns) // 2
    ahead_ns = reply.wall_ns - middle_ns if reply.wall_ns else 0
    return ServerStatus(address, reply, ahead_ns, (after_ns - before_ns) // 2)


def _check_paths(reply: StatusReply) -> Iterator[Finding]:
    """Look at the way to each host that has a daemon which is up."""
    hosts: dict[str, int] = {}
    for node in reply.nodes:
        if node.role == "storage" and node.state == "up" and len(hosts) < HOSTS_MAX:
            host, port = parse_address(node.address)
            hosts.setdefault(host, port)
    for host, port in hosts.items():
        yield check_path(host, port)


def _as_json(finding: Finding) -> dict[str, str]:
    told = {"check": finding.check, "verdict": finding.verdict.value}
    return told | {"message": finding.message, "advice": finding.advice}


def _print(findings: list[Finding], problems: int) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = f"{finding.verdict.value:<8} {finding.check:<{width}} {finding.message}"
        output.print_line(line)
        if finding.advice:
            output.print_line(f"{'':<8} {'':<{width}} -> {finding.advice}")
    output.print_line("")
    output.print_line(output.counted(problems, "problem") if problems else "no problems")


ACTIONS = {"": Action(run, add_arguments, "ffs doctor")}
