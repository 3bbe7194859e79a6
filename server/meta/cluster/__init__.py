"""The cluster manager: who lives, what the members of each chain are, and who decides that.

`states` and `evaluate` are pure: facts in, changes out. `lease` says who is the manager, `liveness`
which daemons live, `placement` which targets make a chain. `role` runs them, `watch` tells.
"""
