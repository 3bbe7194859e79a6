"""Users and tokens on a real cluster: who may do what, and from when on not any more."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ffs.auth.grant import HEAD, GrantKeys, May, ranges_of
from ffs.auth.token import Token
from ffs.auth.token_file import TokenFile
from ffs.client.filesystem import FFSFileSystem
from ffs.client.grants import Grants
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
from ffs.key import ClusterKey
from ffs.rpc.codec import METHODS
from ffs.seams import SystemClock
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
    closed |= {"judge", "scan_done", "set_quota"}
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


# --- a token's file that is replaced --------------------------------------------------------------


def _replace(tenant: Tenant, token: Token) -> None:
    """Put another token into a tenant's file, as `ffs auth token` does."""
    draft = tenant.token_file.with_suffix(".new")
    draft.write_text(token.export())
    draft.chmod(0o600)
    draft.rename(tenant.token_file)


def test_a_job_goes_on_by_the_token_that_its_file_holds_now(
    admit: Admit, home: Home, users: Users, cluster: Cluster
) -> None:
    """Metadata, and a file that was opened by the token before."""
    ann, key = admit("ann"), ClusterKey.load(cluster.key_file)
    path = f"{home(ann)}/f"
    content = os.urandom(200_000)
    ann.fs.pipe_file(path, content)
    with ann.fs.open(path, "rb") as file:
        assert file.read(1_000) == content[:1_000]
        token, _ = users.issue(key, ann.claims.user, job="test", life_ms=3_600_000)
        _replace(ann, token)
        time.sleep(1.1)
        assert file.read(1_000) == content[1_000:2_000]
        assert ann.fs.core.meta.grants._key.current().shown == token.shown
        users.revoke_token(ann.claims.token_id)
        ann.fs.invalidate_cache()
        ann.fs.mkdir(f"{path}-d")
        assert file.read() == content[2_000:]


def test_a_refused_token_is_looked_for_at_once(
    admit: Admit, home: Home, users: Users, cluster: Cluster
) -> None:
    ann, key = admit("ann"), ClusterKey.load(cluster.key_file)
    place = home(ann)
    ann.fs.mkdir(f"{place}/a")
    token, _ = users.issue(key, ann.claims.user, job="test", life_ms=3_600_000)
    ann.fs.core.meta.grants._key._looked_ns = 1 << 62  # it is not looked at by itself
    users.revoke_token(ann.claims.token_id)
    _replace(ann, token)
    ann.fs.mkdir(f"{place}/b")
    for number in range(20):
        ann.fs.pipe_file(f"{place}/{number}", b"x")
    assert len(ann.fs.ls(place)) == 22


def test_grants_of_others_and_of_revoked_tokens_are_not_taken_over(
    admit: Admit, users: Users, cluster: Cluster
) -> None:
    ann, bob, keys = admit("ann"), admit("bob"), _grant_keys(cluster)
    again = admit("ann")
    (old,) = keys.grant(ann.claims, [7], May.READ)
    shown = Token.load(ann.token_file).shown
    assert bob.fs.core.meta.renew_grants([old], shown) == []
    assert again.fs.core.meta.renew_grants([old], b"x" * 200) == []
    (renewed,) = again.fs.core.meta.renew_grants([old], shown)
    assert ranges_of(renewed) == [(7, 7)]
    users.revoke_token(ann.claims.token_id)
    assert again.fs.core.meta.renew_grants([old], shown) == []


def _grant_keys(cluster: Cluster) -> GrantKeys:
    return GrantKeys(ClusterKey.load(cluster.key_file), SystemClock())


def test_a_file_without_a_token_leaves_the_one_before(tmp_path: Path, admit: Admit) -> None:
    file = TokenFile(str(admit("ann").token_file))
    before = file.current()
    Path(file._path).write_text("nonsense")
    assert file.current(look=True) is before
    Path(file._path).unlink()
    assert file.current(look=True) is before


def test_grants_that_cannot_be_renewed_are_forgotten(admit: Admit, cluster: Cluster) -> None:
    ann, keys = admit("ann"), _grant_keys(cluster)
    grants = Grants(lambda old, before: [], SystemClock(), TokenFile(str(ann.token_file)))
    (today,) = keys.grant(ann.claims, [7], May.READ)
    head = list(HEAD.unpack_from(today))
    head[3] -= 3  # days
    old = HEAD.pack(*head) + today[HEAD.size :]
    grants.learn([old, today])
    grants._by_blob[int(May.READ)][8] = grants._by_blob[int(May.READ)][7].__class__(old)
    grants._pruned_s = 0
    grants.learn([])
    assert set(grants._by_blob[int(May.READ)]) == {7}
