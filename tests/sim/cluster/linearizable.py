"""Is a history of a namespace one that a single copy of it could have had?

The search of Wing and Gong with Lowe's memory: of the operations that may come next (those that
began before any unfinished one ended) one is chosen that fits the state, and so on to the end; a
pair of (what is done, state) is never tried twice. A read that fits is taken at once, since that
closes no way. An operation without an answer may have happened at any time after its call, or
never. Paths that no rename ties together are checked apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

Content = tuple[int, ...] | None
"""The blobs that a file consists of, in order; None: there is no such file."""
State = tuple[Content, ...]
NEVER: Final = 1 << 62


@dataclass(slots=True, eq=False)
class Call:
    """One operation as its client saw it.

    `kind`: read, write, append, remove, rename; `paths`: one, or a rename's two; `blob`: of a write
    or append; `seen`: what a read returned; `found`: whether a remove or rename found its source;
    `ended_ns`: NEVER if nobody knows whether it happened.
    """

    kind: str
    paths: tuple[str, ...]
    began_ns: int
    ended_ns: int = NEVER
    blob: int = 0
    seen: Content = None
    found: bool = True


def contradiction(calls: Sequence[Call]) -> str:
    """Return which paths have a history that no order explains; empty: there are none."""
    for group in _together(calls):
        paths = sorted({path for call in group for path in call.paths})
        if not _explained(group, {path: place for place, path in enumerate(paths)}):
            return ", ".join(paths)
    return ""


def _together(calls: Sequence[Call]) -> list[list[Call]]:
    """Split calls into groups that have no path in common."""
    leader: dict[str, str] = {}

    def find(path: str) -> str:
        while leader.setdefault(path, path) != path:
            path = leader[path]
        return path

    for call in calls:
        for path in call.paths:
            leader[find(path)] = find(call.paths[0])
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(find(call.paths[0]), []).append(call)
    return list(groups.values())


def _explained(calls: list[Call], places: dict[str, int]) -> bool:
    """Search for an order of the calls that explains all they returned."""
    calls = sorted(calls, key=lambda call: call.began_ns)
    certain = sum(1 << i for i, call in enumerate(calls) if call.ended_ns < NEVER)
    steps = [_effect(call, places) for call in calls]
    start: State = (None,) * len(places)
    seen: set[tuple[int, State]] = set()
    ways: list[tuple[int, State]] = [(0, start)]
    while ways:
        done, state = ways.pop()
        if done & certain == certain:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        for i in _next(calls, done):
            after = steps[i](state)
            if after is None:
                continue
            way = (done | 1 << i, after)
            if calls[i].kind == "read":
                ways.append(way)
                break
            ways.append(way)
    return False


def _next(calls: list[Call], done: int) -> Iterable[int]:
    """Return the calls that may be the next one, reads first."""
    first_end = NEVER
    candidates = []
    for i, call in enumerate(calls):
        if done >> i & 1:
            continue
        if call.began_ns > first_end:
            break
        candidates.append(i)
        first_end = min(first_end, call.ended_ns)
    fitting = [i for i in candidates if calls[i].began_ns <= first_end]
    return sorted(fitting, key=lambda i: calls[i].kind != "read")


def _effect(call: Call, places: dict[str, int]) -> Callable[[State], State | None]:
    """Return what a call makes of a state; None where it cannot have returned what it did."""
    place = places[call.paths[0]]
    target = places[call.paths[-1]]

    def read(state: State) -> State | None:
        return state if state[place] == call.seen else None

    def write(state: State) -> State | None:
        return _with(state, place, (call.blob,))

    def append(state: State) -> State | None:
        return _with(state, place, (*(state[place] or ()), call.blob))

    def remove(state: State) -> State | None:
        if (state[place] is not None) != call.found:
            return None
        return _with(state, place, None)

    def rename(state: State) -> State | None:
        if (state[place] is not None) != call.found:
            return None
        return _with(_with(state, target, state[place]), place, None) if call.found else state

    effects = {"read": read, "write": write, "append": append, "remove": remove, "rename": rename}
    return effects[call.kind]


def _with(state: State, place: int, content: Content) -> State:
    return (*state[:place], content, *state[place + 1 :])
