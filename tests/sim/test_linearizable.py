"""The search for an order: it accepts what can be, and nothing else."""

from __future__ import annotations

import random

from tests.sim.cluster.linearizable import NEVER, Call, Content, contradiction

PATHS = ("/a", "/b", "/c")


def history(seed: int) -> list[Call]:
    """Make what clients of one real copy may have seen, with calls that overlap."""
    chance = random.Random(seed)
    files: dict[str, Content] = dict.fromkeys(PATHS)
    calls: list[Call] = []
    busy_ns = [0, 0, 0, 0]
    planned = []
    for _ in range(60):
        lane = chance.randrange(4)
        began = busy_ns[lane] + chance.randint(1, 20)
        point = began + chance.randint(1, 40)
        busy_ns[lane] = ended = point + chance.randint(1, 40)
        planned.append((point, began, ended))
    for blob, (_, began, ended) in enumerate(sorted(planned), start=1):
        kind = chance.choice(["read", "read", "write", "append", "remove", "rename"])
        paths = tuple(chance.sample(PATHS, 2 if kind == "rename" else 1))
        call = Call(kind, paths, began, ended, blob)
        _do(call, files)
        if kind != "read" and chance.random() < 0.05:
            call.ended_ns, call.found = NEVER, True
        calls.append(call)
    return calls


def _do(call: Call, files: dict[str, Content]) -> None:
    path, before = call.paths[0], files[call.paths[0]]
    call.found = before is not None
    if call.kind == "read":
        call.seen = before
    elif call.kind == "write":
        files[path] = (call.blob,)
    elif call.kind == "append":
        files[path] = (*(before or ()), call.blob)
    elif before is not None:
        files[path] = None
        if call.kind == "rename":
            files[call.paths[1]] = before


def test_what_one_copy_shows_is_explained() -> None:
    for seed in range(60):
        assert contradiction(history(seed)) == "", seed


def test_a_read_of_what_never_was_is_noticed() -> None:
    found = 0
    for seed in range(60):
        calls = history(seed)
        reads = [call for call in calls if call.kind == "read"]
        reads[len(reads) // 2].seen = (999,)
        found += contradiction(calls) != ""
    assert found == 60


def test_a_stale_read_is_noticed() -> None:
    first = Call("write", ("/a",), 0, 10, blob=1)
    second = Call("write", ("/a",), 20, 30, blob=2)
    assert contradiction([first, second, Call("read", ("/a",), 40, 50, seen=(1,))]) == "/a"
    assert contradiction([first, second, Call("read", ("/a",), 25, 50, seen=(1,))]) == ""


def test_what_nobody_answered_may_have_happened_or_not() -> None:
    write = Call("write", ("/a",), 0, NEVER, blob=1)
    for seen in (None, (1,)):
        assert contradiction([write, Call("read", ("/a",), 40, 50, seen=seen)]) == ""
    back = [Call("read", ("/a",), 40, 50, seen=(1,)), Call("read", ("/a",), 60, 70)]
    assert contradiction([write, *back]) == "/a"


def test_a_rename_ties_its_paths_together() -> None:
    write = Call("write", ("/a",), 0, 10, blob=1)
    rename = Call("rename", ("/a", "/b"), 20, 30)
    both = Call("read", ("/a",), 40, 50, seen=(1,)), Call("read", ("/b",), 40, 50, seen=(1,))
    assert contradiction([write, rename, both[1]]) == ""
    assert contradiction([write, rename, *both]) == "/a, /b"
