"""Message types as plain msgpack values and back, by functions compiled once per dataclass.

Previous hop: ffs.wire declares the types; next hop: ffs.rpc.codec frames the values.

A message is an array of its fields in order. Missing trailing fields take their defaults, extra
trailing ones are ignored, so versions N and N-1 understand each other. A message in a union is
`[tag, fields...]`, the tag being its place in the union; None is nil. Decoding checks the exact
type of everything (a bool is not an int; integers are 64-bit by the format) and the length of every
list, and answers any mismatch with a ProtocolError that names the message and the field.

Messages are dataclasses; those that come by the thousand in one call are named tuples. A named
tuple is its own wire form, and a list of them is checked and made column by column (ffs.rpc.rows);
where that finds anything unusual, each is looked at by itself, and what is wrong is told.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from ffs.errors import ProtocolError
from ffs.limits import RPC_LIST_MAX
from ffs.rpc import rows

T = TypeVar("T")
Convert = Callable[[Any], Any]

_PRIMITIVES: Final = {int: "int", str: "str", bytes: "bytes", bool: "bool"}


@dataclass(frozen=True, slots=True)
class MessageCodec(Generic[T]):
    """How one message travels: `encode` gives msgpack-ready values, `decode` checks them."""

    encode: Callable[[T], tuple[Any, ...]]
    decode: Callable[[Any], T]


_CODECS: dict[type[Any], MessageCodec[Any]] = {}


def codec_of(cls: type[T]) -> MessageCodec[T]:
    """Return the compiled codec of a message, compiling it at first use.

    Raises:  TypeError for a field type that has no wire form: a mistake in a declaration
    Threads: two first uses at once compile twice, with equal results
    """
    codec = _CODECS.get(cls)
    if codec is None:
        if not _is_message(cls):
            raise TypeError(f"{cls!r} is no dataclass or named tuple and cannot be sent")
        codec = MessageCodec(_compile_encoder(cls, ""), _compile_decoder(cls, tagged=False))
        _CODECS[cls] = codec
    return codec


def mismatch(where: str, expected: str, value: object) -> ProtocolError:
    """Return the error for a value that is not what `where` declares."""
    return ProtocolError(f"{where}: expected {expected}, got {_describe(value)}")


def _describe(value: object) -> str:
    return "nil" if value is None else type(value).__name__


# --- what an annotation means ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wire:
    """One annotation's wire form: a type test for generated code, or functions to call.

    `test` is true for a wrong value, with `{}` in the variable's place; None: `decode` does it all.
    `kinds` is what the test lets through. `encode` None: the value itself is msgpack-ready.
    `decode_all` and `encode_all` do a whole list at once, where that is faster than one by one.
    """

    expected: str
    test: str | None = None
    kinds: frozenset[type] = frozenset()
    decode: Convert | None = None
    encode: Convert | None = None
    decode_all: Convert | None = None
    encode_all: Convert | None = None


def _wire_of(annotation: Any, where: str) -> _Wire:
    annotation = getattr(annotation, "__supertype__", annotation)  # a NewType is its base type
    if annotation in _PRIMITIVES:
        name = _PRIMITIVES[annotation]
        return _Wire(name, test=f"type({{}}) is not {name}", kinds=frozenset({annotation}))
    if _is_row(annotation):
        return _row_wire(annotation)
    if _is_message(annotation):
        codec: MessageCodec[Any] = codec_of(annotation)
        return _Wire(_name(annotation), decode=codec.decode, encode=codec.encode)
    origin = typing.get_origin(annotation)
    if origin is list:
        return _list_wire(typing.get_args(annotation)[0], where)
    if origin in (types.UnionType, typing.Union):
        return _union_wire(typing.get_args(annotation), where)
    raise TypeError(f"{where}: {annotation!r} has no wire form")


def _is_message(annotation: Any) -> bool:
    is_class = isinstance(annotation, type)
    return is_class and (dataclasses.is_dataclass(annotation) or _is_row(annotation))


def _is_row(annotation: Any) -> bool:
    """Whether a class is a named tuple."""
    is_tuple = isinstance(annotation, type) and issubclass(annotation, tuple)
    return is_tuple and hasattr(annotation, "_fields")


def _name(cls: type) -> str:
    return cls.__name__


def _row_wire(cls: type[Any]) -> _Wire:
    codec = codec_of(cls)
    fields = _fields_of(cls)
    encode = None if _is_ready(fields) else codec.encode
    return _Wire(
        _name(cls),
        decode=codec.decode,
        encode=encode,
        decode_all=rows.rows_decoder(_row_columns(cls, fields), codec.decode),
        encode_all=rows.rows_encoder(cls, encode),
    )


def _is_ready(fields: list[tuple[str, _Wire, Any]]) -> bool:
    """Whether a row with these fields goes to msgpack as it is."""
    return all(wire.encode is None for _, wire, _ in fields)


def _row_columns(cls: type[Any], fields: list[tuple[str, _Wire, Any]]) -> rows.Columns:
    """Return how the columns of many rows of a class are checked and made values."""
    return rows.Columns(
        partial(tuple.__new__, cls),  # half of what the class's own constructor takes
        len(fields),
        [(i, wire.kinds) for i, (_, wire, _) in enumerate(fields) if wire.kinds],
        [
            (i, wire.decode_all or rows.one_by_one(wire.decode))
            for i, (_, wire, _) in enumerate(fields)
            if wire.decode is not None
        ],
    )


def _list_wire(element: Any, where: str) -> _Wire:
    inner = _wire_of(element, where)
    if inner.decode is None:
        decode_all = _plain_list_decoder(inner, where)
    else:
        decode_all = inner.decode_all or rows.one_by_one(inner.decode)

    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) > RPC_LIST_MAX:
            raise mismatch(where, f"a list of at most {RPC_LIST_MAX}", value)
        return decode_all(value)

    return _Wire("a list", decode=decode, encode=_list_encoder(inner, where))


def _plain_list_decoder(inner: _Wire, where: str) -> Convert:
    kinds = inner.kinds

    def decode_all(values: list[Any]) -> list[Any]:
        if not kinds.issuperset(map(type, values)):
            wrong = next(value for value in values if type(value) not in kinds)
            raise mismatch(where, f"only {inner.expected} in the list", wrong)
        return values

    return decode_all


def _list_encoder(inner: _Wire, where: str) -> Convert:
    """Return what refuses a list here that the peer would refuse, and the connection with it."""
    encode_all = inner.encode_all
    if encode_all is None and inner.encode is not None:
        encode_all = rows.one_by_one(inner.encode)

    def encode(values: Any) -> Any:
        if len(values) > RPC_LIST_MAX:
            raise ValueError(f"{where}: {len(values)} entries, more than {RPC_LIST_MAX}")
        return values if encode_all is None else encode_all(values)

    return encode


def _union_wire(members: tuple[Any, ...], where: str) -> _Wire:
    members = tuple(getattr(m, "__supertype__", m) for m in members)
    plain = [m for m in members if m in _PRIMITIVES]
    classes = [m for m in members if _is_message(m)]
    nullable = types.NoneType in members
    if len(plain) + len(classes) + nullable != len(members):
        raise TypeError(f"{where}: a union may hold messages, int, str, bytes, bool and None")
    names = [_PRIMITIVES[m] for m in plain] + [_name(m) for m in classes]
    expected = " or ".join(names + ["nil"] * nullable)
    allowed = frozenset(plain) | ({types.NoneType} if nullable else set())
    if not classes:
        tests = [f"type({{0}}) is not {_PRIMITIVES[m]}" for m in plain]
        tests += ["{0} is not None"] * nullable
        return _Wire(expected, test="(" + " and ".join(tests) + ")", kinds=allowed)
    decoders = [_compile_decoder(m, tagged=True) if m in classes else None for m in members]
    encoders = {m: _compile_encoder(m, f"{i}, ") for i, m in enumerate(members) if m in classes}
    decode = _union_decoder(where, expected, allowed, decoders)
    encode = _union_encoder(where, expected, allowed, encoders)
    tagged = {tag: (m, _fields_of(m)) for tag, m in enumerate(members) if _is_row(m)}
    wholes = {tag: _row_columns(m, fields) for tag, (m, fields) in tagged.items()}
    ready = {m: tag for tag, (m, fields) in tagged.items() if _is_ready(fields)}
    return _Wire(
        expected,
        decode=decode,
        encode=encode,
        decode_all=rows.tagged_decoder(wholes, decode),
        encode_all=rows.tagged_encoder(ready, encode),
    )


def _union_decoder(
    where: str, expected: str, allowed: frozenset[type], decoders: list[Convert | None]
) -> Convert:
    count = len(decoders)

    def decode(value: Any) -> Any:
        if type(value) is list and value:
            tag = value[0]
            if type(tag) is int and 0 <= tag < count:
                decoder = decoders[tag]
                if decoder is not None:
                    return decoder(value)
            raise ProtocolError(f"{where}: expected {expected}, got an array with no such tag")
        if type(value) in allowed:
            return value
        raise mismatch(where, expected, value)

    return decode


def _union_encoder(
    where: str, expected: str, allowed: frozenset[type], encoders: dict[type, Convert]
) -> Convert:
    def encode(value: Any) -> Any:
        encoder = encoders.get(type(value))
        if encoder is not None:
            return encoder(value)
        if type(value) in allowed:
            return value
        raise TypeError(f"{where}: expected {expected}, got {_describe(value)}")

    return encode


# --- code generation ------------------------------------------------------------------------------


def _run(lines: list[str], namespace: dict[str, Any], name: str) -> Convert:
    """Define a function from source that was built from our own declarations alone."""
    exec(compile("\n".join(lines), f"<ffs.rpc.schema {name}>", "exec"), namespace)
    function: Convert = namespace[name]
    return function


def _fields_of(cls: type[Any]) -> list[tuple[str, _Wire, Any]]:
    """Return (name, wire form, default or MISSING) of each field in order."""
    hints = typing.get_type_hints(cls)
    return [
        (name, _wire_of(hints[name], f"{cls.__name__}.{name}"), default)
        for name, default in _defaults_of(cls)
    ]


def _defaults_of(cls: type[Any]) -> list[tuple[str, Any]]:
    """Return (name, default or MISSING) of each field in order."""
    if _is_row(cls):
        return [(n, cls._field_defaults.get(n, dataclasses.MISSING)) for n in cls._fields]
    return [
        (f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(cls)
    ]


def _compile_encoder(cls: type[Any], prefix: str) -> Convert:
    """Return a function from an instance to its wire values; `prefix` is a tag and a comma."""
    namespace: dict[str, Any] = {}
    items = []
    for i, (name, wire, _) in enumerate(_fields_of(cls)):
        if wire.encode is None:
            items.append(f"o.{name}")
        else:
            namespace[f"e{i}"] = wire.encode
            items.append(f"e{i}(o.{name})")
    body = prefix + ", ".join(items) + ("," if items else "")
    return _run(["def encode(o):", f"    return ({body})"], namespace, "encode")


def _compile_decoder(cls: type[Any], *, tagged: bool) -> Convert:
    """Return a function from an array of wire values (after its tag) to an instance."""
    fields = _fields_of(cls)
    count = len(fields) + tagged
    namespace: dict[str, Any] = {
        "cls": cls,
        "new": object.__new__,
        "mismatch": mismatch,
        "fit": _fitter(cls, fields, tagged),
        "explain": _explainer(cls, fields, tagged),
    }
    lines = [
        "def decode(value):",
        "    if type(value) is not list:",
        f"        raise mismatch({cls.__name__!r}, 'an array of fields', value)",
        f"    if len(value) != {count}:",
        "        value = fit(value)",
    ]
    variables = ["_"] * tagged + [f"f{i}" for i in range(len(fields))]
    if fields:
        lines.append(f"    {', '.join(variables)}, = value")
    lines += _check_lines(fields, namespace)
    lines += _build_lines(cls, fields, namespace)
    return _run(lines, namespace, "decode")


def _check_lines(fields: list[tuple[str, _Wire, Any]], namespace: dict[str, Any]) -> list[str]:
    tests = [w.test.format(f"f{i}") for i, (_, w, _) in enumerate(fields) if w.test is not None]
    lines = [f"    if {' or '.join(tests)}:", "        raise explain(value)"] if tests else []
    for i, (_, wire, _) in enumerate(fields):
        if wire.decode is not None:
            namespace[f"d{i}"] = wire.decode
            lines.append(f"    f{i} = d{i}(f{i})")
    return lines


def _build_lines(
    cls: type[Any], fields: list[tuple[str, _Wire, Any]], namespace: dict[str, Any]
) -> list[str]:
    """Fill the slots directly where the class has plain slots, else call its constructor.

    Why: a frozen dataclass's own constructor takes twice as long.
    """
    slots = [cls.__dict__.get(name) for name, _, _ in fields]
    plain = all(isinstance(s, types.MemberDescriptorType) for s in slots)
    if not plain or hasattr(cls, "__post_init__"):
        return [f"    return cls({', '.join(f'f{i}' for i in range(len(fields)))})"]
    lines = ["    o = new(cls)"]
    for i, slot in enumerate(slots):
        namespace[f"s{i}"] = slot.__set__  # type: ignore[union-attr]  # checked above
        lines.append(f"    s{i}(o, f{i})")
    return [*lines, "    return o"]


def _fitter(
    cls: type[Any], fields: list[tuple[str, _Wire, Any]], tagged: bool
) -> Callable[[list[Any]], list[Any]]:
    """Return what makes an array of another version's length fit this version's fields."""
    count = len(fields) + tagged

    def fit(value: list[Any]) -> list[Any]:
        if len(value) >= count:
            return value[:count]
        fitted = list(value)
        for name, wire, default in fields[len(value) - tagged :]:
            if default is dataclasses.MISSING:
                raise ProtocolError(f"{cls.__name__}.{name}: the field is missing")
            fitted.append(_wire_default(default, wire))
        return fitted

    return fit


def _wire_default(default: Any, wire: _Wire) -> Any:
    """Return a default as it would have come over the wire: fresh, and without enum types."""
    value = copy.deepcopy(default) if wire.encode is None else wire.encode(default)
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


def _tester(test: str) -> Convert:
    return _run(["def wrong(x):", f"    return {test.format('x')}"], {}, "wrong")


def _explainer(
    cls: type[Any], fields: list[tuple[str, _Wire, Any]], tagged: bool
) -> Callable[[list[Any]], ProtocolError]:
    """Return what finds the field whose type test failed."""
    tests = [
        (i + tagged, name, wire.expected, _tester(wire.test))
        for i, (name, wire, _) in enumerate(fields)
        if wire.test is not None
    ]

    def explain(value: list[Any]) -> ProtocolError:
        for i, name, expected, wrong in tests:
            if wrong(value[i]):
                return mismatch(f"{cls.__name__}.{name}", expected, value[i])
        raise AssertionError("a type test failed and then held")

    return explain
