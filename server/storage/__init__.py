"""The storage daemon: targets on disks, the data port, and the logic of the write chain.

`python -m ffs.server.storage` runs one; daemon.py says how its parts fit together.
"""
