"""A simulated metadata server: the real `MetaService`, over the shared database, at a fabric."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgpack

from ffs.config import MetaConfig
from ffs.errors import FFSError
from ffs.rpc.aio import Handler, Peer
from ffs.rpc.codec import PackedReply
from ffs.rpc.schema import codec_of
from ffs.server.meta.ops.chains import lease
from ffs.server.meta.service import MetaService
from ffs.server.meta.store import Transaction
from ffs.types import Routing
from tests.sim.cluster.database import Database, ServerStore
from tests.sim.cluster.fabric import META_PORT, Answer, Fabric, Host
from tests.sim.cluster.ledger import Ledger
from tests.sim.world import World

_HOLDS_KEY: Final = Peer("", 1)


class MetaServer(Host):
    """One metadata server; all that it knows for good is in the database."""

    def __init__(
        self,
        world: World,
        fabric: Fabric,
        name: str,
        database: Database,
        config: MetaConfig,
        ledger: Ledger,
    ) -> None:
        super().__init__(world, fabric, name)
        self._ledger = ledger
        self._database = database
        self._config = config
        self._handlers: Mapping[str, Handler] = {}

    async def main(self) -> None:
        """Serve for as long as this life lasts; tried again while the database is away."""
        self._handlers = {}
        while True:
            service = MetaService(
                ServerStore(self, self._database),
                self._config,
                clock=self.clock,
                randomness=self.world.randomness,
                retry_budget_ns=30_000_000_000,
            )
            try:
                await service.start()
                await service.serves_at(self.name, META_PORT)
            except FFSError:
                await asyncio.sleep(0.1)
                continue
            self._watch_manager(service)
            self._handlers = service.handlers()
            return

    def _watch_manager(self, service: MetaService) -> None:
        """Have each change of chains held against the term of the manager that makes it."""
        role = service._role
        change = role._change

        def watched(tx: Transaction, *args: Any, **options: Any) -> Routing | None:
            routing = change(tx, *args, **options)
            if routing is not None and role._lease is not None:
                self._ledger.on_change(self.name, role._lease.term, lease(tx))
            return routing

        setattr(role, "_change", watched)  # noqa: B010  # a method of one object

    def serve(self, source: str, request: Any, answer: Answer) -> None:
        """Handle a request as `ffs.rpc.aio` does; a server that is not ready yet says nothing."""
        method, body = request
        handler = self._handlers.get(method.name)
        if handler is not None:
            self.loop.create_task(self._handle(handler, method, body, answer))

    async def _handle(self, handler: Handler, method: Any, body: Any, answer: Answer) -> None:
        try:
            reply = await handler(body, _HOLDS_KEY)
        except FFSError as error:
            answer(error)
            return
        if isinstance(reply, PackedReply):
            reply = codec_of(method.reply).decode(msgpack.unpackb(reply.fields))
        answer(reply)
