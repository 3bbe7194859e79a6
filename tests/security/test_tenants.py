"""Users and tokens on a real cluster: who may do what, and from when on not any more."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ffs.auth.token import Token
from ffs.client.filesystem import FFSFileSystem
from ffs.client.operators import Operator
from ffs.client.users import Users
from ffs.errors import (
    AccessError,
    AuthError,
    ConfigError,
    ExistsError,
    InvalidError,
    NotFoundError,
)
from ffs.rpc.codec import METHODS
from ffs.server.meta.tenants import OPEN_TO_TOKENS
from ffs.wire.status import STATUS, StatusRequest
from tests.harness import Cluster
from tests.security.tenants import Admit, Tenant

Home = Callable[[Tenant], str]


def test_a_tenant_owns_what_it_makes(admit: Admit, home: Home) -> None:
    ann = admit("ann", gids=[30_001, 30_002])
    place = home(ann)
    ann.fs.mkdir(f"{place}/d")
    attr = ann.fs.info(f"{place}/d")
    assert (attr["uid"], attr["gid"]) == (ann.claims.uid, 30_001)
    ann.fs.mv(f"{place}/d", f"{place}/e")
    assert ann.fs.ls(place, detail=False) == [f"{place}/e"]


def test_s04_names_of_one_tenant_are_closed_to_another(admit: Admit, home: Home) -> None:
    ann, bob = admit("ann"), admit("bob")
    place = home(ann)
    ann.fs.mkdir(f"{place}/d")
    attempts: tuple[Callable[[], object], ...] = (
        lambda: bob.fs.ls(place),
        lambda: bob.fs.info(f"{place}/d"),
        lambda: bob.fs.mkdir(f"{place}/x"),
        lambda: bob.fs.rmdir(f"{place}/d"),
        lambda: bob.fs.mv(f"{place}/d", "/d"),
        lambda: bob.fs.chmod(place, 0o777),
        lambda: bob.fs.pin(place),
    )
    for refused in attempts:
        with pytest.raises(PermissionError):
            refused()
    assert ann.fs.ls(place, detail=False) == [f"{place}/d"]


def test_operators_requests_are_refused(admit: Admit, users: Users) -> None:
    meta = admit("ann").fs.core.meta
    attempts: tuple[Callable[[], object], ...] = (
        lambda: meta.call(STATUS, StatusRequest()),
        lambda: Operator(meta).tasks(),
        lambda: Users(meta).all(),
        lambda: Users(meta).add("eve", 7, [7]),
        lambda: Users(meta).revoke_user("ann"),
    )
    for refused in attempts:
        with pytest.raises(AccessError, match="permission denied"):
            refused()


def test_what_is_open_to_tokens_is_said_name_by_name() -> None:
    """A method that is added later is closed until somebody opens it."""
    closed = {"heartbeat", "register", "unknown_blobs", "watch_routing", "status", "pin", "unpin"}
    closed |= {"pins", "cluster_begin", "cluster_cancel", "cluster_plan", "cluster_tasks"}
    closed |= {"remove_node", "add_user", "users", "remove_user", "revoke"}
    closed |= {"check", "repair", "live_blobs", "blob_paths", "start_scan", "scan_status"}
    closed |= {"judge", "scan_done"}
    assert OPEN_TO_TOKENS | closed == set(METHODS)
    assert not OPEN_TO_TOKENS & closed


def _refused_soon(call: Callable[[], object]) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            call()
        except AuthError:
            return
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.parametrize("what", ["token", "user", "removed"])
def test_a_revoked_token_is_refused_on_open_connections_too(
    admit: Admit, users: Users, home: Home, what: str
) -> None:
    ann = admit("ann")
    place = home(ann)
    assert ann.fs.ls(place) == []
    {
        "token": lambda: users.revoke_token(ann.claims.token_id),
        "user": lambda: users.revoke_user(ann.claims.user),
        "removed": lambda: users.remove(ann.claims.user),
    }[what]()
    ann.fs.invalidate_cache()
    _refused_soon(lambda: ann.fs.mkdir(f"{place}/d-{time.monotonic_ns()}"))
    if what == "user":
        assert admit("ann").fs.ls(place, detail=False) is not None  # a new token counts


def test_a_token_ends_while_its_connection_is_open(admit: Admit, home: Home) -> None:
    ann = admit("ann", life_ms=1_500)
    place = home(ann)
    _refused_soon(lambda: ann.fs.mkdir(f"{place}/d-{time.monotonic_ns()}"))


def test_users(users: Users, admit: Admit) -> None:
    users.add("carol", 25_000, [25_000, 5])
    users.add("carol", 25_000, [5])
    assert [u.gids for u in users.all() if u.name == "carol"] == [[5]]
    with pytest.raises(ExistsError):
        users.add("carl", 25_000, [5])
    with pytest.raises(ExistsError):
        users.add("carol", 25_001, [5])
    with pytest.raises(InvalidError):
        users.add("root", 0, [0])
    users.remove("carol")
    with pytest.raises(NotFoundError):
        users.remove("carol")


def test_one_or_the_other(cluster: Cluster, admit: Admit) -> None:
    both = {**cluster.storage_options, "token_file": str(admit("ann").token_file)}
    fs = FFSFileSystem(skip_instance_cache=True, **both)
    with pytest.raises(ConfigError, match="both"):
        fs.ls("/")


def test_s14_no_secret_in_words(admit: Admit) -> None:
    ann = admit("ann")
    token = Token.load(ann.token_file)
    secret = ann.token_file.read_text().strip().rpartition(".")[2]
    assert secret not in repr(token) and secret not in str(token)
    with pytest.raises(TypeError):
        pickle.dumps(token)
    ann.fs.ls("/")
    assert secret not in repr(vars(ann.fs))


@pytest.mark.parametrize(
    "text", ["", "x", "ffs-token-1.AAAA.00", "ffs-token-1..", "ffs-token-2.AA.00"]
)
def test_a_file_that_holds_no_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no token"):
        Token.load(path)


def _audited(cluster: Cluster, tenant: Tenant) -> list[dict[str, Any]]:
    """What the metadata server has written down of a tenant's token."""
    whole = (cluster.directory / "log" / "meta-0.err").read_text().rpartition("\n")[0]
    audit = [json.loads(line) for line in whole.splitlines() if '"ffs.audit"' in line]
    return [one for one in audit if one["token"] == tenant.claims.name]


def _events(audited: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(one["event"], one["method"]) for one in audited}


def test_refusals_are_audited(admit: Admit, home: Home, cluster: Cluster) -> None:
    ann, bob = admit("ann"), admit("bob")
    place = home(ann)
    with pytest.raises(PermissionError):
        bob.fs.mkdir(f"{place}/x")
    with pytest.raises(PermissionError):
        bob.fs.info(f"{place}/x")
    wanted = {("request_refused", "mkdir"), ("entries_refused", "stat_many")}
    while not wanted <= _events(mine := _audited(cluster, bob)):
        # Of a flood, which other tests may have made, some lines are left out.
        time.sleep(0.5)
        with pytest.raises(PermissionError):
            bob.fs.mkdir(f"{place}/x")
        with pytest.raises(PermissionError):
            bob.fs.info(f"{place}/x")
    assert all(one["request_id"] > 0 and one["uid"] == bob.claims.uid for one in mine)
