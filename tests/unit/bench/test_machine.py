"""What the harness reads of the machine: ticks, CPU clocks, places."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffs.bench import machine
from ffs.bench.machine import Placement, Ticks


def test_steal_is_its_share_of_all_ticks() -> None:
    before = machine.parse_ticks("cpu  10 0 10 70 5 0 5 0 0 0")
    after = machine.parse_ticks("cpu  50 0 30 100 5 0 5 10 7 0")
    assert after - before == Ticks(100, 10)
    assert (after - before).steal == pytest.approx(0.1)
    assert Ticks(0, 0).steal == 0.0
    assert Ticks(1, 2) + Ticks(3, 4) == Ticks(4, 6)


def test_another_line_is_refused() -> None:
    with pytest.raises(ValueError, match="not the cpu line"):
        machine.parse_ticks("cpu0 1 2 3 4 5 6 7 8")


def test_ticks_grow() -> None:
    before = machine.ticks()
    time.sleep(0.05)
    assert (machine.ticks() - before).total > 0


def test_cpu_seconds_of_another_process_agree_with_proc() -> None:
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    code = spin + "print('done', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        clock = machine.process_cpu_seconds([child.pid])
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        child.communicate(b"\n")
    assert clock >= 0.3
    assert clock == pytest.approx(ticks / os.sysconf("SC_CLK_TCK"), abs=0.05)


def test_threads_of_this_process_are_counted_in_its_clock() -> None:
    assert os.getpid() in machine.threads(os.getpid())
    before = machine.process_cpu_seconds([os.getpid()])
    sum(range(100_000))
    assert machine.process_cpu_seconds([os.getpid()]) > before


def test_placement_takes_different_cpus_where_there_are_two() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    chosen = Placement.choose()
    assert chosen.client_cpu == allowed[0]
    assert (chosen.server_cpu != chosen.client_cpu) == (len(allowed) > 1)
    assert Placement.choose(client_cpu=3, server_cpu=5) == Placement(3, 5)


def test_pinning_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)
    cpu = min(before)
    with machine.pinned({cpu}):
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_a_process_is_pinned_with_its_threads() -> None:
    cpu = min(os.sched_getaffinity(0))
    with subprocess.Popen(["sleep", "30"]) as child:
        try:
            machine.pin_process(child.pid, cpu)
            assert os.sched_getaffinity(child.pid) == {cpu}
        finally:
            child.kill()


def test_the_machine_line_has_its_facts(tmp_path: Path) -> None:
    facts = machine.describe(tmp_path)
    assert {"cpu", "kernel", "congestion_default", "compiler", "disk"} <= facts.keys()
    assert all(facts.values())
    assert " on " in facts["disk"]


def test_a_shared_placement_gives_both_sides_both_cpus() -> None:
    apart, shared = Placement(2, 3), Placement(2, 3, shared=True)
    assert (apart.client_cpus, apart.server_cpus) == ({2}, {3})
    assert shared.client_cpus == shared.server_cpus == {2, 3}


def test_memory_and_faults_of_this_process() -> None:
    faults, before = machine.minor_faults([os.getpid()]), machine.memory(os.getpid())
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # the allocator might have some left
    with mmap.mmap(-1, 32 << 20, flags=flags) as held:
        held.write(b"x" * len(held))
        after = machine.memory(os.getpid())
    assert after.anonymous - before.anonymous >= 16 << 20
    assert machine.minor_faults([os.getpid()]) > faults
    assert after.pinned >= 0
