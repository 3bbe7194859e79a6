"""pytest-benchmark cases of single functions on the hot paths.

`pytest bench/micro --benchmark-enable` prints times; without the option they run once, as tests.
They find what changed; shares of the machine's limit are `ffs-bench`'s business.
"""
