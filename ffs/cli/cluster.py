"""`ffs cluster status|add-node|drain|remove-node|rebalance|accept-loss`: grow, shrink, even out.

What is asked for is done by the cluster manager, step by step, while files are read and written.
These commands only ask, and wait if they are let: to ask again is to wait again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, Final

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.cluster_status import print_moves, status
from ffs.cli.outcome import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, complain
from ffs.cli.progress import progress_bar, watched
from ffs.cli.remote import cluster
from ffs.cli.units import count
from ffs.client.operators import Operator
from ffs.errors import ConfigError, InvalidError, StillNeededError
from ffs.wire.operators import PlanReply, Task, TaskKind

_WORDS: Final = {
    TaskKind.ADD_NODE: "add-node",
    TaskKind.DRAIN_NODE: "drain",
    TaskKind.DRAIN_TARGET: "drain --target",
    TaskKind.REBALANCE: "rebalance",
    TaskKind.ACCEPT_LOSS: "accept-loss",
}


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="say what would be done; do nothing")
    how.add_argument("--cancel", action="store_true", help="want it no more; what is done stays")
    how.add_argument("--no-wait", action="store_true", help="ask for it, and do not wait for it")


# --- drain ----------------------------------------------------------------------------------------


def add_drain_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `cluster drain` takes."""
    parser.add_argument("node", nargs="?", type=count, metavar="NODE", help="its id")
    parser.add_argument("--target", type=count, metavar="TARGET", help="only this target")
    _add_task_arguments(parser)


def drain(args: argparse.Namespace) -> int:
    """Move all that a node, or a target, holds to others, until it can be taken away.

    Each replica is copied before it leaves: there are never fewer than before. Nothing new comes to
    what was drained, until --cancel. Refused if the others have no place or room for it. Of a node
    that is gone, what it held is copied from the other replicas at once, without waiting longer.
    """
    if (args.node is None) == (args.target is None):
        raise ConfigError("say which node to drain, or which --target")
    if args.node is not None:
        kind, subject, what = TaskKind.DRAIN_NODE, args.node, f"node {args.node}"
        then = f"its daemon can be stopped, then `ffs cluster remove-node {subject}`"
    else:
        kind, subject, what = TaskKind.DRAIN_TARGET, args.target, f"target {args.target}"
        then = "its disk can be taken out when the daemon has been stopped"
    return _Asking(args, kind, subject, what=f"drain {what}").run(f"{what} is drained: {then}")


# --- rebalance ------------------------------------------------------------------------------------


def rebalance(args: argparse.Namespace) -> int:
    """Move replicas from the fullest disks to the emptiest ones, until all are about as full.

    As little is copied as that takes. The disks of new nodes are filled this way.
    """
    return _Asking(args, TaskKind.REBALANCE, 0, what="rebalance").run("all disks are about as full")


# --- add-node -------------------------------------------------------------------------------------


def add_add_node_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `cluster add-node` takes."""
    parser.add_argument(
        "host", nargs="?", default="", metavar="HOST", help="what its daemon gets as --host"
    )
    _add_task_arguments(parser)


def add_node(args: argparse.Namespace) -> int:
    """Say what to run on a new machine, await its daemon, and move replicas to it.

    The daemon may come up before or after this command ends.
    """
    asking = _Asking(args, TaskKind.ADD_NODE, 0, what="add a node")
    if args.cancel:
        return asking.cancel_all()
    words = _storage_command(args, args.host or "HOST")
    if not args.json:
        output.print_line(f"on the new machine, with a --target on each disk:\n  {words}")
    if args.dry_run:
        if args.json:
            output.print_json({"run": words})
        return EXIT_DONE
    return asking.run("the node is there, and all disks are about as full", run=words)


def _storage_command(args: argparse.Namespace, host: str) -> str:
    fs = cluster(args)
    servers = fs.core.meta.cluster().servers or [fs.config.url.removeprefix("ffs://")]
    metas = " ".join(f"--meta {server}" for server in servers)
    return f"ffs storage {metas} --key-file cluster.key --host {host} --target DIRECTORY"


# --- remove-node ----------------------------------------------------------------------------------


def add_remove_node_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `cluster remove-node` takes."""
    parser.add_argument("node", type=count, metavar="NODE", help="its id")


def remove_node(args: argparse.Namespace) -> int:
    """Forget a node whose daemon has been stopped and which holds nothing any more.

    That is so after a drain, and when a node was gone for so long that all it held was copied.
    """
    Operator(cluster(args).core.meta).remove_node(args.node)
    if args.json:
        output.print_json({"removed": args.node})
    else:
        output.print_line(f"node {args.node} is forgotten")
    return EXIT_DONE


# --- accept-loss ----------------------------------------------------------------------------------


def add_accept_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `cluster accept-loss` takes."""
    parser.add_argument("chain", type=count, metavar="CHAIN", help="its id")
    parser.add_argument("--yes", action="store_true", help="do it; without, only say what it does")


def accept_loss(args: argparse.Namespace) -> int:
    """Let a chain be served by who is left, and give up what only those may have who are gone.

    The cluster waits for a member that is gone if the others have lost chunks that it may have:
    while all last servers but damaged ones are away, and before what it held is emptied for good.
    Where nobody can bring it back, this ends the waiting. Chunks that nobody has are read errors
    then; `ffs fsck` names their files.
    """
    operator = Operator(cluster(args).core.meta)
    plan = operator.plan(TaskKind.ACCEPT_LOSS, args.chain)
    if plan.refusal:
        raise InvalidError(plan.refusal, hint="`ffs status` shows who serves it")
    if args.yes:
        operator.begin(TaskKind.ACCEPT_LOSS, args.chain)
    if args.json:
        output.print_json({"chain": args.chain, "effects": plan.effects, "accepted": args.yes})
        return EXIT_DONE
    for effect in plan.effects:
        output.print_line(effect)
    output.print_line("accepted" if args.yes else "nothing was done: --yes does it")
    return EXIT_DONE


# --- asking for something -------------------------------------------------------------------------


class _Asking:
    """One command that asks for a task: shows it, cancels it, or begins it and waits."""

    def __init__(self, args: argparse.Namespace, kind: TaskKind, subject: int, what: str) -> None:
        self._args = args
        self._kind = kind
        self._subject = subject
        self._what = what
        self._operator = Operator(cluster(args).core.meta)

    def run(self, done: str, **report: Any) -> int:
        """Do what the options say; `done` is told at the end, `report` with --json."""
        if self._args.dry_run:
            return self._show(self._operator.plan(self._kind, self._subject))
        if self._args.cancel:
            return self.cancel_all()
        host = getattr(self._args, "host", "")
        self._subject = self._operator.begin(self._kind, self._subject, host)
        if self._args.no_wait:
            self._tell("under way", f"asked for: {self._goes_on()}", report)
            return EXIT_DONE
        try:
            finished = self._wait()
        except KeyboardInterrupt:
            complain(self._args, self._goes_on())
            return EXIT_INTERRUPTED
        self._tell("done" if finished else "cancelled", done, report)
        return EXIT_DONE if finished else EXIT_FAILED

    def cancel_all(self) -> int:
        """Cancel the task; of nodes that are expected, all."""
        subjects = [self._subject]
        if self._kind is TaskKind.ADD_NODE:
            subjects = [t.subject for t in self._operator.tasks().tasks if t.kind == self._kind]
        found = [self._operator.cancel(self._kind, subject) for subject in subjects]
        self._tell("cancelled" if any(found) else "nothing", "", {})
        return EXIT_DONE

    def _wait(self) -> bool:
        told = ""
        copied = 0
        with progress_bar(self._args, self._what, self._total_bytes()) as progress:

            def on_progress(task: Task) -> None:
                nonlocal told, copied
                now = max(copied, task.total_bytes - task.left_bytes)
                progress.advance(now - copied)
                copied = now
                if task.waits_for != told and task.waits_for and watched(self._args):
                    complain(self._args, f"waits for {task.waits_for}")
                told = task.waits_for

            return self._operator.wait(self._kind, self._subject, on_progress=on_progress)

    def _total_bytes(self) -> int | None:
        for task in self._operator.tasks().tasks:
            if (task.kind, task.subject) == (self._kind, self._subject):
                return task.total_bytes or None
        return None

    def _goes_on(self) -> str:
        drains = self._kind in (TaskKind.DRAIN_NODE, TaskKind.DRAIN_TARGET)
        subject = f" {self._subject}" if drains else ""
        command = f"ffs cluster {_WORDS[self._kind]}{subject} --cancel"
        return f"the cluster goes on by itself; `ffs cluster status` shows it, `{command}` ends it"

    def _show(self, plan: PlanReply) -> int:
        if self._args.json:
            output.print_json({"moves": [asdict(m) for m in plan.moves], "refusal": plan.refusal})
        elif plan.moves:
            print_moves(plan.moves)
        total = output.human_bytes(sum(move.left_bytes for move in plan.moves))
        if plan.refusal:
            raise StillNeededError(plan.refusal, hint="add a node, or one with more room")
        if not self._args.json:
            output.print_line(f"{output.counted(len(plan.moves), 'move')}, {total} to copy")
        return EXIT_DONE

    def _tell(self, state: str, text: str, report: dict[str, Any]) -> None:
        if self._args.json:
            subject = {"subject": self._subject} if self._subject else {}
            output.print_json(
                {"task": self._kind.name.lower(), **subject, "state": state, **report}
            )
        elif state == "cancelled":
            output.print_line(f"cancelled: {self._what}")
        elif state == "nothing":
            output.print_line(f"nobody has asked for it: {self._what}")
        else:
            output.print_line(text)


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing of its own."""


ACTIONS = {
    "status": Action(status, _no_arguments, "ffs cluster status"),
    "add-node": Action(add_node, add_add_node_arguments, "ffs cluster add-node node9"),
    "drain": Action(drain, add_drain_arguments, "ffs cluster drain 4"),
    "remove-node": Action(remove_node, add_remove_node_arguments, "ffs cluster remove-node 4"),
    "accept-loss": Action(
        accept_loss, add_accept_loss_arguments, "ffs cluster accept-loss 3 --yes"
    ),
    "rebalance": Action(rebalance, _add_task_arguments, "ffs cluster rebalance --dry-run"),
}
