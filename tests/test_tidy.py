"""The house rules that no linter knows: each test names file, line and what to do instead.

Linters (ruff, mypy, import-linter, clang-tidy) check what they can; here is the rest: bans, sizes,
docstrings, who may import what, and which modules must stay free of the outside world.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 800

LIBRARY = ("ffs", "server", "client", "bench")
TALKATIVE = ("ffs/cli/*", "ffs/demo/*", "bench/*", "*/__main__.py", "server/up.py", "tests/*")
"""Where printing is the product."""

PURE = (
    "ffs/types.py",
    "ffs/errors.py",
    "ffs/limits.py",
    "ffs/layout.py",
    "ffs/wire/*",
    "ffs/rpc/codec.py",
    "client/retry.py",
    "client/planner.py",
    "server/storage/chain.py",
    "server/meta/idempotency.py",
    "server/meta/manager.py",
    "server/meta/ops/*",
    "server/meta/schema.py",
    "server/meta/store.py",
)
"""Plain data and state machines: the simulator runs them, so nothing here may reach outside."""

OUTSIDE_WORLD = frozenset(
    {"asyncio", "random", "secrets", "selectors", "select", "signal", "socket", "ssl"}
    | {"subprocess", "threading", "time"}
)

IMPORT_LAW = {
    "torch": ("client/torch/*", "client/checkpoint/*", "ffs/demo/*", "tests/*", "bench/*"),
    "pyarrow": ("client/arrow*", "client/records/pack/columns.py", "tests/*", "bench/*"),
    "uvloop": ("server/*/__main__.py", "server/meta/postgres.py", "bench/cases/*", "tests/*"),
    "cryptography": ("ffs/auth/*", "ffs/certificates.py", "tests/*"),
    "webdataset": ("client/webdataset.py", "bench/peers/loaders/*", "tests/*"),
    "rich": ("ffs/cli/*", "ffs/demo/*"),
    "aiofiles": ("ffs/cli/*",),
    "ffs._reader": (
        "client/metrics.py",
        "client/traced.py",
        "client/rdma.py",
        "client/torch/segment.py",
        "client/reader.py",
        "client/writer.py",
        "client/connections.py",
        "client/settle.py",
        "client/grants.py",
        "server/storage/fetch.py",
        "client/mapped.py",
        "client/rdma.py",
        "client/planner.py",
        "client/records/*",
        "ffs/demo/*",
        "tests/*",
        "bench/*",
    ),
    "ffs._storage": ("server/storage/*", "tests/*", "bench/*"),
    "fsspec": ("client/*", "ffs/cli/*", "ffs/demo/*", "tests/*", "bench/*"),
}
"""Module -> the only files that may import it."""

BANNED_MODULES = {
    "pickle": "it runs what it reads; send typed messages (ffs.rpc)",
    "marshal": "it crashes on foreign bytes; send typed messages (ffs.rpc)",
    "shelve": "it is pickle in a file",
    "yaml": "configuration is TOML (ffs.config)",
}

BANNED_CALLS = {
    "eval": "it runs what it reads",
    "exec": "it runs what it reads",
    "os.system": "use subprocess with a list of arguments",
    "os.popen": "use subprocess with a list of arguments",
    "time.time": "take a Clock (ffs.seams), so that the simulator can turn it",
    "time.time_ns": "take a Clock (ffs.seams), so that the simulator can turn it",
    "datetime.now": "take a Clock (ffs.seams), so that the simulator can turn it",
    "datetime.utcnow": "take a Clock (ffs.seams), so that the simulator can turn it",
    "random.random": "take a Randomness (ffs.seams), so that the simulator can seed it",
    "random.randrange": "take a Randomness (ffs.seams), so that the simulator can seed it",
    "random.randint": "take a Randomness (ffs.seams), so that the simulator can seed it",
    "random.choice": "take a Randomness (ffs.seams), so that the simulator can seed it",
    "random.uniform": "take a Randomness (ffs.seams), so that the simulator can seed it",
    "random.shuffle": "take a Randomness (ffs.seams), so that the simulator can seed it",
}
GENERATORS = ("ffs/rpc/schema.py",)
"""Where source text made by us alone is compiled at import, as dataclasses does it, for speed."""
SEAMS = ("ffs/seams.py", "ffs/log.py")
"""Where the clock and the dice are; log lines carry the wall clock of the standard library."""

MARKERS = re.compile(
    r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b"
)


@dataclass(frozen=True)
class Source:
    """A file of ours: its path relative to the root, its text, and for Python its tree."""

    path: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The text, line by line."""
        return self.text.splitlines()

    @property
    def tree(self) -> ast.Module:
        """The syntax tree (Python files only)."""
        return _parse(self)

    def within(self, *patterns: str) -> bool:
        """Whether the path matches one of the shell patterns."""
        return any(fnmatch.fnmatchcase(self.path, p) for p in patterns)


@cache
def _parse(source: Source) -> ast.Module:
    return ast.parse(source.text, source.path)


@cache
def nodes(source: Source) -> tuple[ast.AST, ...]:
    """Every node of the tree: walked once for all rules, which is most of their time."""
    return tuple(ast.walk(source.tree))


@cache
def sources(*tops: str, suffix: str = ".py") -> tuple[Source, ...]:
    """Every file of ours with a suffix under some folders; links are not followed."""
    found = []
    for top in tops:
        for path in sorted((ROOT / top).rglob(f"*{suffix}")):
            relative = path.relative_to(ROOT)
            linked = any((ROOT / parent).is_symlink() for parent in relative.parents)
            if not linked and "build" not in relative.parts and path.is_file():
                found.append(Source(str(relative), path.read_text(encoding="utf-8")))
    return tuple(found)


def library() -> tuple[Source, ...]:
    """The Python files that are installed."""
    return tuple(s for s in sources(*LIBRARY) if not s.within("bench/micro/*"))


def all_python() -> tuple[Source, ...]:
    """The installed files and the tests."""
    return sources(*LIBRARY, "tests")


def native() -> tuple[Source, ...]:
    """C sources and headers."""
    return sources("native", "bench", suffix=".c") + sources("native", "bench", suffix=".h")


def must_be_empty(violations: Iterator[str]) -> None:
    """Fail with every violation on a line of its own."""
    found = list(violations)
    assert not found, "\n" + "\n".join(found)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def calls(source: Source) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name, node) of every call by name."""
    for node in nodes(source):
        if isinstance(node, ast.Call) and dotted(node.func):
            yield node.lineno, dotted(node.func), node


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, `from a import b` as both `a` and `a.b`."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


# --- bans ---------------------------------------------------------------------------------------


def test_libraries_do_not_print() -> None:
    def violations() -> Iterator[str]:
        for source in library():
            for line, name, _ in calls(source):
                if name == "print" and not source.within(*TALKATIVE):
                    yield f"{source.path}:{line}: print in a library; log an event (ffs.log)"

    must_be_empty(violations())


def test_no_banned_module() -> None:
    def violations() -> Iterator[str]:
        for source in library():
            for line, module in imports(source):
                if module in BANNED_MODULES:
                    yield f"{source.path}:{line}: import {module}; {BANNED_MODULES[module]}"

    must_be_empty(violations())


def test_no_banned_call() -> None:
    def violations() -> Iterator[str]:
        for source in library():
            for line, name, node in calls(source):
                exempt = source.within(*SEAMS, "ffs/demo/*", "bench/*") or (
                    name == "exec" and source.within(*GENERATORS)
                )
                if name in BANNED_CALLS and not exempt:
                    yield f"{source.path}:{line}: {name}(); {BANNED_CALLS[name]}"
                if any(k.arg == "shell" and _is_true(k.value) for k in node.keywords):
                    yield f"{source.path}:{line}: shell=True; pass a list of arguments"

    must_be_empty(violations())


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_pure_modules_reach_nothing_outside() -> None:
    def violations() -> Iterator[str]:
        for source in library():
            if not source.within(*PURE):
                continue
            for line, module in imports(source):
                if module.split(".")[0] in OUTSIDE_WORLD:
                    yield f"{source.path}:{line}: import {module} in a sans-IO module; use a seam"
            for line, name, _ in calls(source):
                if name == "open":
                    yield f"{source.path}:{line}: open() in a sans-IO module; use a seam"

    must_be_empty(violations())


def test_imports_keep_to_their_files() -> None:
    def violations() -> Iterator[str]:
        for source in all_python():
            for line, module in imports(source):
                for banned, allowed in IMPORT_LAW.items():
                    inside = module == banned or module.startswith(banned + ".")
                    if inside and not source.within(*allowed):
                        yield f"{source.path}:{line}: import {module}; only {allowed} may"

    must_be_empty(violations())


def test_no_broad_except_without_a_reason() -> None:
    """`except Exception` must pass the error on, or say in a comment beside it why not."""

    def violations() -> Iterator[str]:
        for source in library():
            for node in nodes(source):
                if not isinstance(node, ast.ExceptHandler):
                    continue
                if node.type is None:
                    yield f"{source.path}:{node.lineno}: bare except; name what is caught"
                elif _is_broad(node.type) and not _raises(node) and not _reason(source, node):
                    yield (
                        f"{source.path}:{node.lineno}: except {ast.unparse(node.type)} that "
                        "neither passes it on nor says why in a comment beside it"
                    )

    must_be_empty(violations())


def _is_broad(node: ast.expr) -> bool:
    names = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(dotted(n) in ("Exception", "BaseException") for n in names)


def _raises(handler: ast.ExceptHandler) -> bool:
    """Whether the error goes on: raised, or handed by its name to whoever deals with it."""
    body = [node for statement in handler.body for node in ast.walk(statement)]
    handed_on = any(isinstance(n, ast.Name) and n.id == handler.name for n in body)
    return handed_on or any(isinstance(n, ast.Raise) for n in body)


def _reason(source: Source, handler: ast.ExceptHandler) -> bool:
    here, below = source.lines[handler.lineno - 1 : handler.lineno + 1]
    comment = here.partition("#")[2] + (below if below.lstrip().startswith("#") else "")
    words = re.sub(r"noqa:?\s*[A-Z0-9, ]*", "", comment).split()
    return len(words) >= 3


def test_no_mutable_default() -> None:
    def violations() -> Iterator[str]:
        for source in all_python():
            for node in nodes(source):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]
                    if any(isinstance(d, (ast.List, ast.Dict, ast.Set)) for d in defaults):
                        yield f"{source.path}:{node.lineno}: {node.name} has a mutable default"

    must_be_empty(violations())


def test_ignores_name_what_they_ignore() -> None:
    bare = re.compile(r"#\s*(type:\s*ignore(?!\[)|noqa(?!:\s*[A-Z]))")

    def violations() -> Iterator[str]:
        for source in all_python():
            for number, line in enumerate(source.lines, 1):
                if bare.search(line) and "re.compile" not in line:
                    yield f"{source.path}:{number}: an ignore without a code"

    must_be_empty(violations())


def test_no_leftover_marker() -> None:
    def violations() -> Iterator[str]:
        for source in (*all_python(), *native()):
            for number, line in enumerate(source.lines, 1):
                if MARKERS.search(line):
                    yield f"{source.path}:{number}: leftover marker: finish it or write an issue"

    must_be_empty(violations())


def test_native_sources_are_ascii() -> None:
    def violations() -> Iterator[str]:
        for source in native():
            for number, line in enumerate(source.lines, 1):
                if not line.isascii():
                    yield f"{source.path}:{number}: a character outside ASCII in C"

    must_be_empty(violations())


# --- sizes and words ------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    def violations() -> Iterator[str]:
        for source in (*all_python(), *native()):
            if len(source.lines) > MODULE_LINES_MAX:
                yield f"{source.path}: {len(source.lines)} lines; split it by concept"

    must_be_empty(violations())


def test_functions_are_short() -> None:
    def violations() -> Iterator[str]:
        for source in all_python():
            for node in nodes(source):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > FUNCTION_LINES_MAX:
                        yield f"{source.path}:{node.lineno}: {node.name} has {length} lines"
        for source in native():
            for line, name, length in c_functions(source):
                if length > FUNCTION_LINES_MAX:
                    yield f"{source.path}:{line}: {name} has {length} lines"

    must_be_empty(violations())


def c_functions(source: Source) -> Iterator[tuple[int, str, int]]:
    """(line, name, lines) of C functions: by our layout `{` and `}` in column 0 enclose a body."""
    start, name = 0, ""
    for number, line in enumerate(source.lines, 1):
        heading = re.match(r"[A-Za-z_].*?(\w+)\(", line)
        if heading:
            name = heading.group(1)
        if line == "{":
            start = number
        elif line == "}" and start:
            yield start, name, number - start + 1
            start = 0


def test_everything_public_has_a_docstring() -> None:
    def violations() -> Iterator[str]:
        for source in library():
            if source.text.strip() and ast.get_docstring(source.tree) is None:
                yield f"{source.path}:1: module without a docstring: role, neighbours, invariants"
            for line, name in undocumented(source.tree, ""):
                yield f"{source.path}:{line}: {name} is public and has no docstring"

    must_be_empty(violations())


def undocumented(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[int, str]]:
    """(line, name) of public classes, functions and methods without a docstring."""
    for node in scope.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_") or _is_accessor_twin(node):
            continue
        if ast.get_docstring(node) is None:
            yield node.lineno, prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{prefix}{node.name}.")


def _is_accessor_twin(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A setter, deleter or overload is documented by its other half."""
    ends = {dotted(d).rsplit(".", 1)[-1] for d in node.decorator_list}
    return bool(ends & {"setter", "deleter", "overload"})


# --- the rules themselves -------------------------------------------------------------------------

PLANTED: list[tuple[Callable[[], None], str, str]] = [
    (test_libraries_do_not_print, "client/x.py", '"""X."""\nprint(1)\n'),
    (test_no_banned_module, "client/x.py", '"""X."""\nimport pickle\n'),
    (test_no_banned_call, "client/x.py", '"""X."""\nimport time\nnow = time.time()\n'),
    (test_pure_modules_reach_nothing_outside, "client/retry.py", '"""X."""\nimport socket\n'),
    (test_imports_keep_to_their_files, "server/x.py", '"""X."""\nfrom ffs import _reader\n'),
    (
        test_no_broad_except_without_a_reason,
        "client/x.py",
        '"""X."""\ntry:\n    pass\nexcept Exception:  # noqa: BLE001\n    pass\n',
    ),
    (test_no_mutable_default, "client/x.py", "def _f(x=[]):\n    pass\n"),
    (test_ignores_name_what_they_ignore, "client/x.py", "x = 1  # type: " + "ignore\n"),
    (test_no_leftover_marker, "client/x.py", "# TO" + "DO: later\n"),
    (test_modules_are_short, "client/x.py", "x = 1\n" * 801),
    (test_functions_are_short, "client/x.py", "def f():\n" + "    x = 1\n" * 70),
    (test_everything_public_has_a_docstring, "client/x.py", '"""X."""\ndef f():\n    pass\n'),
]


@pytest.mark.parametrize(
    ("rule", "path", "text"), PLANTED, ids=lambda v: getattr(v, "__name__", "")
)
def test_rules_find_planted_violations(
    rule: Callable[[], None], path: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that finds nothing because it looks nowhere would be worse than none."""
    planted = (Source(path, text),)
    for name in ("library", "all_python"):
        monkeypatch.setitem(globals(), name, lambda: planted)
    monkeypatch.setitem(globals(), "native", lambda: ())
    with pytest.raises(AssertionError, match=re.escape(path)):
        rule()
