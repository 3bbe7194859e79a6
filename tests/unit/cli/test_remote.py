"""Paths and options on the command line."""

from __future__ import annotations

import argparse

import pytest

from ffs.cli.remote import (
    Remote,
    client_options,
    into_directory,
    is_remote,
    overrides,
    parse,
    patience,
)
from ffs.config import ClientConfig
from ffs.errors import ConfigError


def arguments(**given: object) -> argparse.Namespace:
    """What the shared options leave behind."""
    usual: dict[str, object] = {"url": None, "config_file": None, "set": []}
    usual |= {"key_file": None, "token_file": None}
    return argparse.Namespace(**{**usual, **given})


@pytest.mark.parametrize(
    ("text", "url", "path"),
    [
        ("ffs://host:1/a/b", "ffs://host:1", "/a/b"),
        ("ffs://host:1", "ffs://host:1", "/"),
        ("ffs:///a", "", "/a"),
        ("ffs:////a//b/", "", "/a/b"),
        ("ffs://", "", "/"),
        ("/a", "", "/a"),
    ],
)
def test_path_names_its_cluster(text: str, url: str, path: str) -> None:
    assert parse(text, arguments()) == Remote(url, path)


def test_flag_supplies_the_cluster_that_a_path_leaves_out() -> None:
    given = arguments(url="ffs://other:2/")
    assert parse("/a", given) == Remote("ffs://other:2", "/a")
    assert parse("ffs://host:1/a", given) == Remote("ffs://host:1", "/a")


def test_only_the_scheme_makes_a_path_remote() -> None:
    assert is_remote("ffs:///x")
    assert not is_remote("/x") and not is_remote("x")


def test_set_needs_table_key_and_value() -> None:
    assert overrides(arguments(set=["client.stall_ms=5"])) == {"client.stall_ms": "5"}
    for wrong in ("client.stall_ms", "stall_ms=5"):
        with pytest.raises(ConfigError, match=r"is not TABLE\.KEY=VALUE"):
            overrides(arguments(set=[wrong]))


def test_file_system_gets_only_what_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFS_CLIENT__STALL_MS", "70")
    given = arguments(set=["client.verify=false"], key_file="/k")
    options = client_options(Remote("ffs://h:1", "/"), given)
    keys = {"key_file": "/k", "token_file": ""}  # a token of the environment counts no more
    assert options == {"verify": False, "url": "ffs://h:1", **keys}


def test_timeout_bounds_every_operation_even_below_a_fail_over() -> None:
    config = ClientConfig(connect_ms=100)
    assert patience(config, None) is config
    hurried = patience(config, 0.5)
    assert (hurried.meta_deadline_ms, hurried.read_deadline_ms) == (500, 500)
    assert (hurried.write_deadline_ms, hurried.connect_ms) == (500, 100)
    assert patience(config, 1e-9).connect_ms == 1


def test_sources_go_into_a_directory() -> None:
    assert into_directory("/d", True, False)
    assert not into_directory("/d", False, False)
    for target, many in (("/d/", False), ("/d", True)):
        with pytest.raises(NotADirectoryError):
            into_directory(target, False, many)
