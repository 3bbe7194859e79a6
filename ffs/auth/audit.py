"""The audit log: what was refused to whom, and by which request. One JSON object a line.

Written by servers under `ffs.audit`, on stderr like all they log, always as JSON. The peer is told
none of it: to it every refusal is the same error. Bounded as every event is (ffs.log): of a flood
ten lines a second are written, and how many were left out.
"""

from __future__ import annotations

import logging
from typing import Final

import msgpack

from ffs.auth.token import Claims
from ffs.errors import AccessError, AuthError, FFSError, NotPermittedError
from ffs.wire.frame import Op

log = logging.getLogger("ffs.audit")

_REFUSALS: Final = (AuthError, AccessError, NotPermittedError)
_DENIED: Final = msgpack.packb(AccessError.code) + msgpack.packb("permission denied")
"""An entry of a batch that was denied, as it stands in a reply."""


def note_error(claims: Claims, peer: str, method: str, request_id: int, error: FFSError) -> None:
    """Write down that a request of a token's holder was refused, if that is what the error says."""
    if isinstance(error, _REFUSALS):
        extra = _facts(claims, peer, method, request_id)
        log.info("request_refused", extra={**extra, **error.where, "error": type(error).__name__})


def note_reply(claims: Claims, peer: str, method: str, request_id: int, reply: bytes) -> None:
    """Write down that entries of a batch were refused, if a reply says so of some."""
    denied = reply.count(_DENIED)
    if denied:
        extra = _facts(claims, peer, method, request_id)
        log.info("entries_refused", extra={**extra, "entries": denied})


def note_grant(
    claims: Claims, peer: str, op: Op, request_id: int, blob: int, left_out: int
) -> None:
    """Write down that a daemon refused a request for want of a grant.

    Args:    left_out: how many such requests before it are not written down
    """
    extra = {**_facts(claims, peer, op.name.lower(), request_id), "blob": blob}
    log.info("data_refused", extra={**extra, **({"left_out": left_out} if left_out else {})})


def note_token(claims: Claims) -> None:
    """Write down that a genuine token was shown that is over or revoked."""
    log.info("token_refused", extra=_who(claims))


def _who(claims: Claims) -> dict[str, object]:
    return {"user": claims.user, "uid": claims.uid, "job": claims.job, "token": claims.name}


def _facts(claims: Claims, peer: str, method: str, request_id: int) -> dict[str, object]:
    return {**_who(claims), "peer": peer, "method": method, "request_id": request_id}
