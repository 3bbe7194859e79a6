"""Loaders of other projects, and ours, each in a process of its own: `python -m loaders NAME`.

Run with the folder bench/peers on PYTHONPATH by the interpreter of a virtual environment that has
the loader's packages (bench/peers/environments.py) and nothing of FFS, so only the standard
library, NumPy and torch are imported here, and ours.py alone imports FFS. bench/peers/process.py
talks to it; child.py is this side of the conversation.

A module here has `write(job)`, which puts the samples into the loader's own format, and
`loader(job)`, which returns batches without end that child.py can take apart with `rows`.
"""
