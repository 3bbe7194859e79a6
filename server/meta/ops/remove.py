"""remove_many: files and symlinks, one answer per path.

Previous hop: `service`. Next hop: `release`. A path named twice is removed once.
"""

from __future__ import annotations

from collections.abc import Mapping

from ffs.errors import DirectoryExpectedError, FFSError, FileExpectedError, NotFoundError
from ffs.server.meta.ops.charges import uncharge_names
from ffs.server.meta.ops.context import Context, fault
from ffs.server.meta.ops.directories import delete_names, touch_directories
from ffs.server.meta.ops.names import Key, hold_inodes, hold_names, visible
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.messages import RemoveManyReply, RemoveManyRequest
from ffs.wire.method import Fault


def remove_many(tx: Transaction, context: Context, request: RemoveManyRequest) -> RemoveManyReply:
    """Remove each path that is a file; directories and missing names are faults."""
    walker = Walker(tx, context.caller, request.paths, context=context)
    there, alive = hold_names(tx, walker.good())
    walker.guard.load({*(parent for parent, _ in there), *(inode for inode, _ in there.values())})
    going: dict[Key, int] = {}
    results: list[None | Fault] = []
    for place, key in enumerate(walker.keys):
        if isinstance(key, FFSError):
            results.append(fault(key))
        elif key in going or visible(there.get(key)) is None:
            results.append(fault(NotFoundError("no such file or directory")))
        elif refusal := walker.guard.take_refusal(key[0], there[key][0], request.paths[place]):
            results.append(fault(refusal))
        elif there[key][1] == FileType.DIRECTORY:
            results.append(fault(FileExpectedError("is a directory")))
        elif place in walker.slashed:
            results.append(fault(DirectoryExpectedError("not a directory")))
        else:
            going[key] = there[key][0]
            results.append(None)
    unlink(tx, context.now_ns, going, {parent: alive[parent].quota for parent, _ in going})
    return RemoveManyReply(results)


def unlink(
    tx: Transaction, now_ns: int, going: Mapping[Key, int], quotas: Mapping[int, int]
) -> None:
    """Take names of files away, which are held, with what only they had.

    Args:    quotas: what their directories belong to
    """
    if not going:
        return
    if tx.shared:
        # Before a name is gone: whoever adds the same name waits for us from then on.
        hold_inodes(tx, going.values())
    uncharge_names(tx, [(inode, quotas[parent]) for (parent, _), inode in going.items()])
    delete_names(tx, going)
    doom(tx, going.values())
    release_doomed(tx, now_ns)
    touch_directories(tx, now_ns, dict.fromkeys({parent for parent, _ in going}, 0))
