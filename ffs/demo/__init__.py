"""`make demo`: the main job in under a minute, with nothing left out and nothing left behind.

A real cluster of processes in a temporary directory; real files, packed and copied in; an epoch
read back in random order through C straight into tensors; a tiny model trained on it. Every sample
is held against the hash that it had before it was stored, and the figures come from clocks and the
engine's own counters.
"""
