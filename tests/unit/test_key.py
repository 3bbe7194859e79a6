"""The cluster key's file: made once, private, whole, and never shown."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest

from ffs.errors import ConfigError, ExistsError
from ffs.handshake import ClusterKey


def test_create_then_load(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    key = ClusterKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert len(text) == 65
    assert text.endswith("\n")
    assert ClusterKey.load(path) == key
    assert ClusterKey.load(str(path)).mac(b"x") == key.mac(b"x")
    assert hash(ClusterKey.load(path)) == hash(key)
    assert os.listdir(tmp_path) == ["cluster.key"]


def test_create_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    key = ClusterKey.create(path)
    with pytest.raises(ExistsError):
        ClusterKey.create(path)
    assert ClusterKey.load(path) == key
    assert os.listdir(tmp_path) == ["cluster.key"]


def test_two_keys_differ(tmp_path: Path) -> None:
    assert ClusterKey.create(tmp_path / "a") != ClusterKey.create(tmp_path / "b")
    assert ClusterKey.create(tmp_path / "c") != "a key"


@pytest.mark.parametrize("text", [b"", b"zz" * 32, b"00" * 31, b"00" * 33, b"\xff" * 64])
def test_damaged_key_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "cluster.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        ClusterKey.load(path)
    assert caught.value.where["path"] == str(path)


def test_missing_key_file_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FFS_KEY_FILE"):
        ClusterKey.load(tmp_path / "nowhere")


def test_a_key_that_others_can_read_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cluster.key"
    ClusterKey.create(path)
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "ffs.key"):
        ClusterKey.load(path)
    assert caplog.messages == ["key_file_open_to_others"]


def test_a_key_is_never_shown(tmp_path: Path) -> None:
    key = ClusterKey.create(tmp_path / "cluster.key")
    digits = (tmp_path / "cluster.key").read_text().strip()
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert digits not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)
