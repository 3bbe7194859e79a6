"""Simulation: the real decision logic under a virtual clock, with every fault made by a seed."""
