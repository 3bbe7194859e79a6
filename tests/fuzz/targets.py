"""What is fuzzed in Python: each target takes one input and returns, or breaks a promise.

atheris (tests/fuzz/run.py) mutates inputs of a corpus; tests/fuzz/test_corpus.py replays the corpus
and every input that once broke something. Only errors of ffs.errors may come out of the code that
reads a peer's bytes, and what it accepts must survive being sent again. The native targets are in
native/fuzz.
"""

from __future__ import annotations

from collections.abc import Callable

from ffs.errors import FFSError, ProtocolError
from ffs.handshake import ClientHandshake, HandshakeKind, ServerHandshake, refusal
from ffs.key import ClusterKey
from ffs.rpc import codec
from ffs.rpc.codec import LENGTH, METHODS, FrameDecoder, ReplyFrame, RequestFrame
from ffs.seams import SystemRandomness

HANDSHAKE_BYTES = 40
KEY = ClusterKey(bytes(32))


class FixedNonce(SystemRandomness):
    """Randomness that an input can know: a handshake then repeats itself."""

    def token(self, n: int) -> bytes:
        """Return zeros."""
        return bytes(n)


def frames(data: bytes) -> None:
    """A stream of frames, cut at the first byte's whim: the cuts must not matter."""
    whole, cut = FrameDecoder(), FrameDecoder()
    stream, step = data[1:], (data[0] if data else 0) + 1
    found = _frames_of(whole, [stream])
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    # A length that is refused ends the stream for both, at once for the one that was fed all.
    cut_found = _frames_of(cut, pieces)
    assert cut_found[: len(found)] == found
    for frame in cut_found:
        for decode in (codec.decode_request, codec.decode_reply):
            try:
                decode(frame)
            except ProtocolError:
                pass


def _frames_of(decoder: FrameDecoder, pieces: list[bytes]) -> list[bytes]:
    found = []
    fed = 0
    try:
        for piece in pieces:
            decoder.feed(piece)
            fed += len(piece)
            while (frame := decoder.next_frame()) is not None:
                found.append(frame)
            assert decoder.buffered_bytes == fed - sum(LENGTH.size + len(f) for f in found)
    except ProtocolError:
        pass
    return found


def request(data: bytes) -> None:
    """A request's frame, without its length: what is accepted is the same after a second trip."""
    try:
        envelope = codec.decode_request(data)
        method = METHODS.get(envelope.method)
        if method is None:
            return
        value = codec.parse_request(method, envelope)
    except ProtocolError:
        return
    sent = codec.encode_request(envelope.request_id, method, value, envelope.deadline_ms)
    again = codec.decode_request(sent[LENGTH.size :])
    assert codec.parse_request(method, again) == value
    head = RequestFrame(envelope.request_id, method.name, again.fields, envelope.deadline_ms)
    assert again == head


def reply(data: bytes) -> None:
    """A method's name, a line end, and the frame of its reply."""
    name, _, frame = data.partition(b"\n")
    method = METHODS.get(name.decode("latin-1"))
    if method is None:
        return
    try:
        envelope = codec.decode_reply(frame)
        outcome = codec.parse_outcome(method, envelope)
    except ProtocolError:
        return
    if isinstance(outcome, FFSError):
        _same_error(envelope, outcome)
        return
    sent = codec.encode_reply(envelope.request_id, method, outcome)
    again = codec.decode_reply(sent[LENGTH.size :])
    assert (again.request_id, again.code) == (envelope.request_id, 0)
    assert codec.parse_outcome(method, again) == outcome


def _same_error(envelope: ReplyFrame, error: FFSError) -> None:
    assert str(error)
    sent = codec.encode_error(envelope.request_id, error)
    again = codec.decode_reply(sent[LENGTH.size :])
    assert (again.request_id, again.code) == (envelope.request_id, error.code)
    twice = codec.parse_outcome(next(iter(METHODS.values())), again)
    assert isinstance(twice, FFSError)
    told = (error.message, error.hint, error.where)
    assert (type(twice), (twice.message, twice.hint, twice.where)) == (type(error), told)


def handshake(data: bytes) -> None:
    """Messages to a client's half (first byte odd) or a server's; no input proves the key.

    The last message may have any length, as from a driver that is broken.
    """
    kind = HandshakeKind.DATA if data[:1] > b"\x7f" else HandshakeKind.RPC
    half: ClientHandshake | ServerHandshake = ServerHandshake(KEY, kind, FixedNonce())
    if data and data[0] & 1:
        half = ClientHandshake(KEY, kind, FixedNonce())
        assert len(half.start()) == HANDSHAKE_BYTES
    for at in range(1, len(data), HANDSHAKE_BYTES):
        try:
            answer = half.receive(data[at : at + HANDSHAKE_BYTES])
        except FFSError as refused:
            told = refusal(refused)
            assert (len(told), half.done) == (HANDSHAKE_BYTES, False)
            return
        assert len(answer) == (0 if half.done and data[0] & 1 else HANDSHAKE_BYTES)
        if half.done:
            return


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (frames, request, reply, handshake)
}
"""Every target by its name, which is that of its corpus."""
