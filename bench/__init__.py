"""`ffs-bench`: what FFS reaches, as a share of what this machine can do in the same run.

Every figure stands beside a reference: a plain C loop (bench/raw/), fio, or a bare SQLite loop,
measured in turn with ours under the same conditions (docs/benchmarks.md says which and why).

Layout: cli.py -> cases/*.py -> measure.py (rounds, intervals, verdicts), rawtools.py (C programs),
machine.py (clocks, steal, pinning), cluster.py (real processes), report.py (text and JSON).
bench/micro/ holds pytest-benchmark cases of single functions.
"""
