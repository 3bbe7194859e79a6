"""What `ffs doctor` looks at: the host (host.py), the way to the daemons (path.py), the cluster."""
