"""The client: an fsspec file system whose reads land where the caller wants them.

Nothing is imported here; `ffs.client.filesystem` is the door, and fsspec finds it by its entry
point.
"""
