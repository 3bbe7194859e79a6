"""Peers that hold back, lie, flood and never read: what they cost and that others go on."""
