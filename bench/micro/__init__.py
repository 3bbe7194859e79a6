"""pytest-benchmark cases of single functions on the hot paths: `pytest bench/micro --benchmark-enable`.

They find what changed; shares of the machine's limit are `ffs-bench`'s business.
"""
