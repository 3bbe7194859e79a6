"""`ffs auth`: users, tokens, and a client that goes by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.harness import Cluster


def test_the_command_line(ffs: Cli, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ffs("auth", "user", "add", "dora", "--uid", "26000", "--gid", "6", "--gid", "7")
    assert {"name": "dora", "uid": 26000, "gids": [6, 7]} in ffs(
        "auth", "user", "list", "--json"
    ).json()
    made = ffs("auth", "token", "dora", "--job", "j", "-o", "dora.token", "--json").json()
    assert made["user"] == "dora" and made["file"] == "dora.token"
    assert Path("dora.token").stat().st_mode & 0o777 == 0o600
    again = ffs("auth", "token", "dora", "-o", "dora.token", check=False)
    assert again.code == 1 and "dora.token" in again.err
    assert ffs("ls", "/", "--token-file", "dora.token").code == 0
    monkeypatch.delenv("FFS_KEY_FILE")
    monkeypatch.setenv("FFS_TOKEN_FILE", "dora.token")
    assert ffs("ls", "/").code == 0
    refused = ffs("auth", "user", "list", check=False)
    assert refused.code == 1 and "permission denied" in refused.err
    ffs("auth", "revoke", made["token"], "--key-file", str(cluster.key_file))
    assert ffs("ls", "/", check=False).code == 1
    ffs("auth", "user", "remove", "dora", "--key-file", str(cluster.key_file))
