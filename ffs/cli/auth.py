"""`ffs auth`: who may talk to whom."""

from __future__ import annotations

from ffs.cli import auth_ca
from ffs.cli.action import Action

ACTIONS = {
    "ca": Action(auth_ca.ca, auth_ca.add_arguments, "ffs auth ca init /root/ffs-ca", cluster=False),
}
