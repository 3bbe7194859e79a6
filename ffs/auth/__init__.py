"""Who a client is: tokens, their signatures, and which of them count no more.

Clients load a token and prove that they hold it (ffs.handshake); servers verify it. All keys follow
from the cluster key, so nothing but that is handed out (docs/decisions/0011-security.md).
"""
