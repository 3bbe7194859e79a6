"""Traced reads for OpenTelemetry, where a program uses it.

Previous hop: `FFSFileSystem.trace_read`. Next hop: whatever tracer provider the program, or
`opentelemetry-instrument`, has set; without one, and without opentelemetry-api, nothing happens.

A read is a span, each of its ranges one below it, and each part of a range that took time one below
that, in the order of client/traced.py. The FFS trace id is the attribute `ffs.trace_id`, as logs
and errors write it.
"""

from __future__ import annotations

import importlib
from typing import Any

import ffs
from ffs.client import trace
from ffs.client.traced import PARTS, RangeTimes, TracedRead


def export(read: TracedRead) -> bool:
    """Hand a read over as spans; return whether there is anybody to take them."""
    try:
        api = importlib.import_module("opentelemetry.trace")
    except ImportError:
        return False
    tracer = api.get_tracer("ffs", ffs.__version__)
    shift_ns = read.wall_ns - read.began_ns
    attributes = {"ffs.path": read.path, "ffs.trace_id": trace.as_fact(read.trace_id)}
    span = tracer.start_span("ffs.read", start_time=read.wall_ns, attributes=attributes)
    context = api.set_span_in_context(span)
    for one in read.ranges:
        _export_range(api, tracer, context, one, shift_ns)
    span.end(end_time=read.wall_ns + read.took_ns)
    return bool(span.is_recording() or span.get_span_context().is_valid)


def _export_range(api: Any, tracer: Any, above: Any, one: RangeTimes, shift_ns: int) -> None:
    began_ns = one.asked_ns - one.queue_ns + shift_ns
    names = ("offset", "length", "chunk", "target", "node", "address", "transport", "tries")
    attributes = {f"ffs.{name}": getattr(one, name) for name in names}
    span = tracer.start_span("ffs.range", above, start_time=began_ns, attributes=attributes)
    context = api.set_span_in_context(span)
    at_ns = began_ns
    for part in PARTS[1:]:
        part_ns = getattr(one, f"{part}_ns")
        if part_ns:
            below = tracer.start_span(f"ffs.{part}", context, start_time=at_ns)
            below.end(end_time=at_ns + part_ns)
        at_ns += part_ns
    span.end(end_time=at_ns)
