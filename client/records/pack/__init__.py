"""Converts datasets: other formats into records, and back (`ffs pack`, ffs/cli/pack.py).

job.py plans the shards of a target and runs them; a source (sources.py, tar.py, mds.py, columns.py)
says which pieces there are and reads the samples of one; a target (targets.py and the same modules)
writes one shard. places.py is where files are, units.py what goes from one to the other.
"""
