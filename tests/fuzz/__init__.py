"""Fuzzing: what a peer may send, tried at random and from a committed corpus (make fuzz)."""
