"""Holders of tokens at the metadata server: what they may call, as whom, and who they are to it.

Previous hop: `ffs.rpc.aio`, with the claims that the handshake has verified. Next hop: the handlers
of `service`, which check each operation by the caller (`ops.access`). This is the only place that
says what a token is good for: a method that is not named here is for holders of the cluster key.

Invariants: a token counts at each request, not only when its connection was opened; write sessions
are a user's own, whatever client id another one sends. Failure: AuthError for a token that is over
or revoked, AccessError else; neither says why, the audit log does (`ffs.audit`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from ffs.auth.grant import May
from ffs.auth.token import Claims, refused
from ffs.auth.verifier import TokenVerifier
from ffs.errors import AccessError, FFSError, InvalidError
from ffs.limits import GRANTS_RENEWED_MAX, TOKEN_BYTES_MAX
from ffs.rpc.aio import Handler, Peer
from ffs.server.meta.ops import create, users
from ffs.server.meta.ops import open as opening
from ffs.server.meta.ops.access import ROOT, Caller
from ffs.server.meta.ops.context import Context
from ffs.server.meta.store import Store, Transaction
from ffs.wire import messages as wire
from ffs.wire import snapshots
from ffs.wire.auth import RENEW_GRANTS, RenewGrantsReply, RenewGrantsRequest, Revocations

log = logging.getLogger("ffs.meta.tenants")

LOOK_S: Final = 0.5
"""How often a server looks for what others have revoked."""
KEY_PRINCIPAL: Final = b"cluster-key"
"""Who every holder of the cluster key is to the ledger of mutations."""

OPEN_TO_TOKENS: Final = frozenset(
    method.name
    for method in (
        *(wire.ROUTING, wire.STAT_MANY, wire.OPEN_MANY, wire.LIST, wire.READLINK, wire.LAYOUT),
        *(wire.USAGE_MANY, wire.STATFS, wire.CREATE_MANY, wire.CLOSE_MANY, wire.ABORT_MANY),
        *(wire.RENEW, wire.MKDIR, wire.RENAME, wire.REMOVE_MANY, wire.RMDIR, wire.SYMLINK),
        *(wire.LINK, wire.SET_LAYOUT, wire.SETATTR, wire.COPY, wire.QUOTA, RENEW_GRANTS),
        *(snapshots.CLONE, snapshots.SNAPSHOT, snapshots.REMOVE_SNAPSHOT),
        *(snapshots.TRASH, snapshots.TRASHED),
    )
)


def caller_of(peer: Peer) -> Caller:
    """Return as whom a peer's operations run."""
    claims = peer.claims
    if claims is None:
        return ROOT
    return Caller(claims.uid, claims.gids[0], frozenset(claims.gids), claims)


def principal_of(peer: Peer) -> bytes:
    """Return whose mutations a peer's are: a user's stay so when its token is replaced."""
    return KEY_PRINCIPAL if peer.claims is None else b"uid %d" % peer.claims.uid


class Tenants:
    """What stands between holders of tokens and the handlers.

    Args:    verifier: says which tokens count, and is told here what was revoked; None: none do
    Threads: the event loop's
    """

    def __init__(self, store: Store, verifier: TokenVerifier | None) -> None:
        self._store = store
        self._verifier = verifier
        self._known = Revocations(-1, [])

    def guarded(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Return the handlers, each behind what its method asks of a token."""
        return {name: self._guarded(name, handler) for name, handler in handlers.items()}

    def _guarded(self, name: str, handler: Handler) -> Handler:
        is_open = name in OPEN_TO_TOKENS

        async def handle(request: Any, peer: Peer) -> Any:
            if peer.claims is not None:
                if self._verifier is None or not self._verifier.counts(peer.claims):
                    raise refused()
                if not is_open:
                    raise AccessError("permission denied")
                request = _owned(request, peer.claims)
            return await handler(request, peer)

        return handle

    # --- what may be read and written ------------------------------------------------------------

    def open_many(
        self, tx: Transaction, caller: Caller, request: wire.OpenManyRequest
    ) -> wire.OpenManyReply:
        """Open files; a token's holder is granted their blobs."""
        reply = opening.open_many(tx, caller, request)
        if caller.claims is None:
            return reply
        opened = [file for file in reply.files if isinstance(file, wire.OpenFile)]
        blobs = (segment.blob for file in opened for segment in file.segments)
        return replace(reply, grants=self._grants(caller, blobs, May.READ))

    def create_many(
        self, tx: Transaction, context: Context, request: wire.CreateManyRequest
    ) -> wire.CreateManyReply:
        """Open write sessions; a token's holder is granted their blobs."""
        reply = create.create_many(tx, context, request)
        if context.caller.claims is None:
            return reply
        made = [one for one in reply.sessions if isinstance(one, wire.WriteSession)]
        blobs = (session.blob for session in made)
        return replace(reply, grants=self._grants(context.caller, blobs, May.READ | May.WRITE))

    def _grants(self, caller: Caller, blobs: Iterable[int], may: May) -> list[bytes]:
        if caller.claims is None or self._verifier is None:
            return []
        return self._verifier.grants.grant(caller.claims, blobs, may)

    async def renew_grants(self, request: RenewGrantsRequest, peer: Peer) -> RenewGrantsReply:
        """Let grants count for longer. Permissions are checked when a file is opened, as ever."""
        if peer.claims is None or self._verifier is None:
            return RenewGrantsReply([])
        if len(request.grants) > GRANTS_RENEWED_MAX:
            raise InvalidError(f"{len(request.grants)} grants, {GRANTS_RENEWED_MAX} are renewed")
        shown = request.before[:TOKEN_BYTES_MAX]
        before = self._verifier.replaced(peer.claims, shown) if shown else b""
        return RenewGrantsReply(self._verifier.grants.renew(peer.claims, request.grants, before))

    # --- what is revoked --------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the revocations that this server goes by."""
        return self._known.version

    def newer_than(self, version: int) -> Revocations | None:
        """Return the revocations for a daemon that has those of a version; None if it has ours."""
        return self._known if -2 < version != self._known.version else None

    async def refresh(self) -> None:
        """Go by what the database has now."""
        if self._verifier is None:
            return
        if await self._store.read(users.revocations_version) != self._known.version:
            self._known = await self._store.read(users.revocations)
            self._verifier.take(self._known)

    async def watch(self) -> None:
        """Refresh again and again until cancelled; while the database is away nothing changes."""
        while self._verifier is not None:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(FFSError):
                await self.refresh()


def _owned(request: Any, claims: Claims) -> Any:
    """Return a request whose client, if it names one, is one of the user's alone."""
    client = getattr(request, "client", b"")
    if not client:
        return request
    owned = hashlib.blake2b(client, digest_size=32, key=b"uid %d" % claims.uid).digest()
    return replace(request, client=owned)
