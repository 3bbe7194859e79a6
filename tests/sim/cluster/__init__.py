"""A whole simulated cluster: the real servers on a virtual event loop (see run.py)."""
