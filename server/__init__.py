"""The server side of FFS: the metadata server (`meta`) and the storage daemon (`storage`)."""
