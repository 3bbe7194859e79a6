"""The metadata server: names, attributes, blobs and write sessions, kept in SQL.

A request comes in through `ffs.rpc`, is matched to one operation by `service`, and runs as a plain
function (`ops/`) over a transaction that the store (`sqlite`) opens. Nothing below `service` knows
of sockets or event loops; nothing above `ops/` knows of SQL.
"""
