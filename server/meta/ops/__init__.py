"""The namespace operations: one file each, plain functions over a `store.Transaction`.

Previous hop: `service`. Next hop: SQL. A function that changes something takes a `Context` for
time and chance; one that reads takes none. Functions raise typed errors; batch forms put a `Fault`
in the place of each entry that failed and go on with the others.
"""
