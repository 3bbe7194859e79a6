"""The parts of one client, put together: what a file system object works with.

Role: client/filesystem.py makes one `Core` at its first I/O; from then on every operation goes from
there to `meta`, `reader` and `writing`. Making one reads the key file and the certificates, and
opens no socket but that of `metrics_address`, if there is one.

Fork: each part re-makes itself (client/_fork.py), so a core stays usable in the child.
"""

from __future__ import annotations

import weakref

from ffs.auth.insecure import INSECURE, KEY, refuse_remote
from ffs.auth.token_file import TokenFile
from ffs.client import metrics
from ffs.client.connections import Connections
from ffs.client.grants import Grants
from ffs.client.handles import HandleTable
from ffs.client.meta import MetaClient
from ffs.client.options import addresses_of
from ffs.client.rdma import RdmaOptions
from ffs.client.reader import Reader
from ffs.client.replicas import Replicas
from ffs.client.retry import RetryPolicy
from ffs.client.sessions import SessionKeeper
from ffs.client.settle import Settler
from ffs.client.writer import Writing
from ffs.config import ClientConfig, TlsConfig
from ffs.errors import ConfigError
from ffs.handshake import ClusterKey, Credential
from ffs.rpc.blocking import RpcClient
from ffs.seams import Clock, Randomness, SystemClock, SystemRandomness
from ffs.tls import Tls
from ffs.tls_relay import TlsRelay
from ffs.wire.frame import Priority


class Core:
    """A client of one cluster, with the options of `config`."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        tls: TlsConfig | None = None,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
        addresses = addresses_of(config)
        key = credential_of(config)
        if tls is not None and tls.data and config.transport == "rdma":
            raise ConfigError("RDMA is not encrypted", hint='transport="auto", or tls.data=false')
        certificates = Tls.configured(tls or TlsConfig())
        relay = TlsRelay.configured(tls or TlsConfig(), certificates)
        policy = RetryPolicy(config.backoff_ms, config.backoff_max_ms, randomness)
        rpc = RpcClient(
            addresses,
            key,
            connect_ms=config.connect_ms,
            tls=certificates,
        )
        self.config = config
        self.clock = clock
        self.meta = MetaClient(
            rpc,
            policy,
            clock,
            randomness,
            deadline_ms=config.meta_deadline_ms,
            attr_ttl_ms=config.attr_ttl_ms,
        )
        if isinstance(key, TokenFile):
            self.meta.grants = Grants(self.meta.renew_grants, clock, key)
        self.connections = Connections(
            key,
            connect_ms=config.connect_ms,
            congestion=config.congestion,
            receive_buffer_bytes=config.receive_buffer_bytes,
            same_host=config.same_host == "auto" and config.transport != "rdma",
            rdma=None if relay else rdma_options(config),
            grants=self.meta.grants,
            priority=Priority[config.priority.upper()],
            relay=relay,
        )
        self.settler = Settler(
            self.connections,
            policy,
            clock,
            Replicas(clock, self.connections.load),
            route=self.meta.route,
            refresh=self.meta.refresh_route,
            connections_per_node=config.connections_per_node,
            stall_ms=config.stall_ms,
            grants=self.meta.grants,
        )
        self.reader = Reader(
            self.settler, deadline_ms=config.read_deadline_ms, verify=config.verify
        )
        self.keeper = SessionKeeper(self.meta)
        self.writing = Writing(
            self.settler, self.meta, self.keeper, deadline_ms=config.write_deadline_ms
        )
        self.handles = HandleTable()
        metrics.count(self.settler.replicas)
        if config.metrics_address:
            metrics.serve(config.metrics_address)
        # A client that nobody closes still closes its sockets: when it is dropped, or at exit.
        self._finalizer = weakref.finalize(self, _close, self.connections, self.meta)

    def close(self) -> None:
        """Abort dropped sessions and close every connection."""
        self.keeper.close()
        self._finalizer()


def credential_of(config: ClientConfig) -> Credential:
    """Load what the options say that we prove ourselves by. Raises ConfigError."""
    if config.auth == INSECURE:
        return _no_credential(config)
    if config.token_file and config.key_file:
        raise ConfigError(
            "both a cluster key and a token are configured",
            hint="unset FFS_KEY_FILE or FFS_TOKEN_FILE: the one makes you root, the other does not",
        )
    if config.token_file:
        return TokenFile(config.token_file)
    if not config.key_file:
        raise ConfigError(
            "no cluster key is configured, nor a token",
            hint="pass key_file=, or set FFS_KEY_FILE to the cluster.key that `ffs up` wrote",
        )
    return ClusterKey.load(config.key_file)


def _no_credential(config: ClientConfig) -> ClusterKey:
    if config.key_file or config.token_file:
        raise ConfigError(
            'auth = "insecure" is configured, and a key or a token too',
            hint="unset FFS_CLIENT__AUTH, or FFS_KEY_FILE and FFS_TOKEN_FILE",
        )
    for host, _ in addresses_of(config):
        refuse_remote(host, "without authentication only this machine is talked to")
    return KEY


def rdma_options(config: ClientConfig) -> RdmaOptions | None:
    """Return what the options say about RDMA; None: never."""
    if config.transport == "tcp":
        return None
    return RdmaOptions(
        config.transport == "rdma",
        config.rdma_device,
        config.rdma_gid_index,
        config.rdma_window_bytes,
        config.rdma_connect,
    )


def _close(connections: Connections, meta: MetaClient) -> None:
    connections.close()
    meta.close()
