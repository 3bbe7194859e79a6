"""Users with tokens on the shared cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ffs.auth.token import Claims
from ffs.client.filesystem import FFSFileSystem
from ffs.client.users import Users
from ffs.key import ClusterKey
from tests.harness import Cluster

_uids = itertools.count(20_001)


@dataclass
class Tenant:
    """A user, one token of it, and a file system that goes by that."""

    claims: Claims
    token_file: Path
    fs: Any


Admit = Callable[..., Tenant]


@pytest.fixture
def users(fs: Any) -> Users:
    """The shared cluster's users, as an operator changes them."""
    return Users(fs.core.meta)


@pytest.fixture
def admit(cluster: Cluster, users: Users, tmp_path: Path) -> Iterator[Admit]:
    """Make a user with a token: `admit("ann")`, or one more token of hers."""
    made: list[Tenant] = []
    uids: dict[str, int] = {}

    def make(
        name: str,
        *,
        gids: list[int] | None = None,
        life_ms: int = 3_600_000,
        same_host: bool = False,
    ) -> Tenant:
        if name not in uids:
            uids[name] = next(_uids)
            users.add(f"{name}-{uids[name]}", uids[name], gids or [uids[name]])
        key = ClusterKey.load(cluster.key_file)
        user = f"{name}-{uids[name]}"
        token, claims = users.issue(key, user, job="test", life_ms=life_ms, same_host=same_host)
        path = tmp_path / f"{claims.name}.token"
        path.write_text(token.export())
        path.chmod(0o600)
        options = {**cluster.storage_options, "key_file": "", "token_file": str(path)}
        made.append(Tenant(claims, path, FFSFileSystem(skip_instance_cache=True, **options)))
        return made[-1]

    yield make
    for tenant in made:
        tenant.fs.close()


@pytest.fixture
def home(fs: Any, fs_dir: str) -> Callable[[Tenant], str]:
    """Make a directory that only a tenant may enter."""

    def make(tenant: Tenant) -> str:
        path = f"{fs_dir}/{tenant.claims.user}"
        fs.mkdir(path)
        fs.chown(path, tenant.claims.uid, tenant.claims.gids[0])
        fs.chmod(path, 0o700)
        return path

    return make
