"""Records: many samples in few files, read at random by their numbers (docs/records.md).

`ffs.records` is the public door. Reading: records.py -> index.py (where each sample lies) ->
files.py -> client/filesystem.py. Writing: writer.py -> sinks.py -> client/writer.py.
"""
