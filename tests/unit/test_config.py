"""Configuration: where values come from, which are refused and how that is told."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from ffs import config
from ffs.config import ClientConfig, Config, LogConfig, MetaConfig, StorageConfig, load
from ffs.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "meta": MetaConfig,
    "storage": StorageConfig,
    "client": ClientConfig,
    "log": LogConfig,
}
UNITS = ("_ms", "_s", "_bytes", "_max", "_per_node", "_percent")
UNITLESS = {
    "backup_keep",
    "loops",
    "min_replicas",
    "port",
    "rdma_gid_index",
    "replicas",
    "stripe",
}


def write(path: Path, text: str) -> Path:
    """A TOML file."""
    path.write_text(text)
    return path


def test_defaults() -> None:
    assert load(env={}) == Config()
    assert load(env={}).client.stall_ms == 80
    assert load(env={}).meta.chunk_size_bytes == 1 << 20


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path / "ffs.toml", "[client]\nstall_ms = 1\nbackoff_ms = 2\nconnect_ms = 3\n")
    env = {"FFS_CLIENT__BACKOFF_MS": "20", "FFS_CLIENT__CONNECT_MS": "30"}
    found = load(path, env=env, overrides={"client.connect_ms": 300}).client
    assert (found.stall_ms, found.backoff_ms, found.connect_ms) == (1, 20, 300)


def test_file_named_by_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "ffs.toml", "[meta]\nport = 9\n")
    assert load(env={"FFS_CONFIG": str(path)}).meta.port == 9
    other = write(tmp_path / "other.toml", "[meta]\nport = 10\n")
    assert load(other, env={"FFS_CONFIG": str(path)}).meta.port == 10


def test_every_type_from_every_source(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ffs.toml",
        "[storage]\ntargets = ['/a', '/b']\n[log]\njson = true\n"
        "level = 'debug'\n[meta]\nport = 7\n",
    )
    from_file = load(path, env={})
    assert from_file.storage.targets == ("/a", "/b")
    assert from_file.log == LogConfig(json=True, level="debug")
    from_env = load(
        env={
            "FFS_STORAGE__TARGETS": "/a, /b",
            "FFS_LOG__JSON": "true",
            "FFS_LOG__LEVEL": "debug",
            "FFS_META__PORT": "7",
        }
    )
    assert from_env == from_file
    texts = {"storage.targets": "/a,/b", "log.json": "1", "log.level": "debug", "meta.port": "7"}
    assert load(env={}, overrides=texts) == from_file
    typed = {"storage.targets": ["/a", "/b"], "log.json": True, "log.level": "debug"}
    assert load(env={}, overrides={**typed, "meta.port": 7}) == from_file


def test_short_forms() -> None:
    found = load(env={"FFS_URL": "ffs://h:1", "FFS_KEY_FILE": "/k"}).client
    assert (found.url, found.key_file) == ("ffs://h:1", "/k")
    same = {"FFS_KEY_FILE": "/k", "FFS_CLIENT__KEY_FILE": "/k"}
    assert load(env=same).client.key_file == "/k"
    with pytest.raises(ConfigError, match="FFS_KEY_FILE and FFS_CLIENT__KEY_FILE disagree"):
        load(env={**same, "FFS_CLIENT__KEY_FILE": "/other"})


def test_other_variables_are_none_of_ours() -> None:
    assert load(env={"FFS_CI": "1", "PATH": "/bin", "X__Y": "1", "FFS_URL": ""}) == Config()


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("client.stal_ms", "client.stall_ms"),
        ("clinet.stall_ms", "client.stall_ms"),
        ("meta.chunk_size", "meta.chunk_size_bytes"),
        ("log.lvl", "log.level"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, key: str, near: str) -> None:
    section, _, name = key.partition(".")
    variable = f"FFS_{section}__{name}".upper()
    path = write(tmp_path / "ffs.toml", f"[{section}]\n{name} = 1\n")
    for sources in (
        {"overrides": {key: 1}},
        {"env": {variable: "1"}},
        {"path": path},
    ):
        with pytest.raises(ConfigError, match=re.escape(f"did you mean {near}?")) as caught:
            load(**{"env": {}, **sources})  # type: ignore[arg-type]
        assert key in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("client.stall_ms", "80ms", "no whole number"),
        ("client.stall_ms", 80.0, "no whole number"),
        ("client.stall_ms", True, "no whole number"),
        ("client.stall_ms", -1, "outside of 0..600000"),
        ("client.verify", "maybe", "true or false"),
        ("client.verify", 1, "no true or false"),
        ("client.url", 7, "no text"),
        ("client.congestion", "cubic; rm", "cubic, reno or bbr"),
        ("log.level", "loud", "one of debug, info, warning, error"),
        ("storage.targets", 7, "no list of texts"),
        ("storage.targets", ["/a", 7], "every entry must be a text"),
        ("storage.targets", [""], "every entry must be a text"),
        ("meta.port", 65_536, "outside of 0..65535"),
        ("meta.chunk_size_bytes", 100_000, "no power of two .use 131072"),
        ("meta.chunk_size_bytes", 1 << 27, "outside"),
    ],
)
def test_bad_values(key: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load(env={}, overrides={key: value})
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[meta\n", "no TOML"),
        ("port = 1\n", r"port stands outside .* \[meta\]"),
        ("[meta]\nport = '1'\n", "meta.port is '1'"),
        ("[storage]\ntargets = '/a'\n", "no list of texts"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(write(tmp_path / "ffs.toml", text), env={})


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        load(tmp_path / "nowhere.toml", env={})
    assert caught.value.where["path"].endswith("nowhere.toml")


@pytest.mark.parametrize("name", ["read_deadline_ms", "write_deadline_ms", "meta_deadline_ms"])
def test_patience_exceeds_failover(name: str) -> None:
    """The client's retry budget must be longer than detection, transition and routing."""
    enough = Config().meta.failover_ms + 1
    load(env={}, overrides={f"client.{name}": enough})
    with pytest.raises(ConfigError, match=f"client.{name}"):
        load(env={}, overrides={f"client.{name}": enough - 1})
    with pytest.raises(ConfigError, match=r"60000 ms \(node_lease_ms\).* = 62000 ms"):
        load(env={}, overrides={"meta.node_lease_ms": 60_000})


def test_everything_scales_by_one_factor() -> None:
    times = {
        f"{section}.{field.name}": int(str(field.default)) // 10
        for section, cls in (("meta", MetaConfig), ("client", ClientConfig))
        for field in dataclasses.fields(cls)
        if field.name.endswith("_ms") and field.name != "commit_window_ms"
    }
    assert load(env={}, overrides=times).meta.failover_ms == Config().meta.failover_ms // 10


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="two heartbeats"):
        load(env={}, overrides={"meta.node_lease_ms": 1_500})
    with pytest.raises(ConfigError, match="backoff_max_ms"):
        load(env={}, overrides={"client.backoff_max_ms": 10})
    with pytest.raises(ConfigError, match="no write could ever be done"):
        load(env={}, overrides={"meta.replicas": 2, "meta.min_replicas": 3})


@pytest.mark.parametrize(
    ("replicas", "said", "wanted"), [(1, 0, 1), (2, 0, 1), (3, 0, 2), (3, 3, 3), (3, 1, 1)]
)
def test_one_replica_may_be_missing_unless_said_otherwise(
    replicas: int, said: int, wanted: int
) -> None:
    meta = MetaConfig(replicas=replicas, min_replicas=said)
    assert meta.min_replicas_wanted == wanted


def test_a_section_alone_is_checked_too() -> None:
    with pytest.raises(ConfigError):
        ClientConfig(stall_ms=-1)
    with pytest.raises(ConfigError):
        dataclasses.replace(MetaConfig(), port=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MetaConfig().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_says_unit_range_and_reason(section: str) -> None:
    for field in dataclasses.fields(SECTIONS[section]):
        assert len(field.metadata["reason"]) > 10, field.name
        if field.type == "int":
            assert field.name.endswith(UNITS) or field.name in UNITLESS, field.name
            assert field.metadata["low"] <= field.default <= field.metadata["high"]


def test_documentation_is_fresh() -> None:
    written = (ROOT / "docs/config.md").read_text()
    assert written == config.as_markdown(), "run ffs.config.write_markdown('docs/config.md')"


def test_documentation_is_written(tmp_path: Path) -> None:
    config.write_markdown(tmp_path / "config.md")
    assert (tmp_path / "config.md").read_text() == config.as_markdown()
