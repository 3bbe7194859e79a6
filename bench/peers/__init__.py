"""What a user would pick instead of FFS, started for real and read through its own client.

`servers` starts nginx, Redis and an Arrow Flight server; `clients` reads the same ranges through
each, as its own documentation says to read fast. bench/cases/compare.py lets them take turns.
"""
