"""Checkpoints on the native path; public as ffs.torch, see docs/checkpoints.md."""
