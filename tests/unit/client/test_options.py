"""URLs and keywords: one spelling of a path, the cluster in the URL, typing errors named."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import fsspec
import pytest

from ffs.client import options
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FFS_URL", "FFS_KEY_FILE", "FFS_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("ffs://host:1234/a/b", "/a/b"),
        ("ffs://host:1234/a/b/", "/a/b"),
        ("ffs://host:1234", "/"),
        ("ffs://host", "/"),
        ("ffs://a/b/c", "/a/b/c"),
        ("ffs:///a", "/a"),
        ("ffs://", "/"),
        ("/a//b///c", "/a/b/c"),
        ("a/b", "/a/b"),
        ("", "/"),
        ("/", "/"),
        (Path("/x/y"), "/x/y"),
        (["ffs:///a", "/b/"], ["/a", "/b"]),
    ],
)
def test_strip_protocol(url: object, path: object) -> None:
    assert FFSFileSystem._strip_protocol(url) == path


def test_names_and_urls_agree() -> None:
    fs = FFSFileSystem(url="ffs://host:1234", skip_instance_cache=True)
    url = fs.unstrip_protocol("/a/b")
    assert url == "ffs://host:1234/a/b"
    assert fs._strip_protocol(url) == "/a/b"
    assert fs._get_kwargs_from_urls(url) == {"url": "ffs://host:1234"}
    assert fs.unstrip_protocol(url) == url
    assert fs._parent("/a") == "/" and fs._parent("/a/b") == "/a"


def test_the_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFS_URL", "ffs://there:99")
    assert FFSFileSystem._get_kwargs_from_urls("ffs:///x") == {"url": "ffs://there:99"}
    assert FFSFileSystem._get_kwargs_from_urls("ffs://no-port/x") == {"url": "ffs://there:99"}
    fs, path = fsspec.url_to_fs("ffs:///x")
    assert isinstance(fs, FFSFileSystem)
    assert path == "/x" and fs.unstrip_protocol(path) == "ffs://there:99/x"
    monkeypatch.setenv("FFS_URL", "ffs://elsewhere:99")
    assert fsspec.url_to_fs("ffs:///x")[0] is not fs


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ffs://h:1/x", ("h", 1)),
        ("ffs://h", ("h", 7411)),
        ("ffs://[::1]:5", ("::1", 5)),
    ],
)
def test_addresses(url: str, address: tuple[str, int]) -> None:
    assert options.address_of(url) == address


@pytest.mark.parametrize("url", ["", "ffs:///x", "ffs://h:0", "ffs://h:99999", "ffs://:1"])
def test_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="no metadata server") as caught:
        options.address_of(url)
    assert "FFS_URL" in caught.value.hint


def test_more_servers_stand_beside_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(**keywords: object) -> list[tuple[str, int]]:
        return options.addresses_of(options.client_config(keywords))

    assert addresses(url="ffs://a:1") == [("a", 1)]
    both = addresses(url="ffs://a:1", hosts=["b:2", "[::1]:5", "d"])
    assert both == [("a", 1), ("b", 2), ("::1", 5), ("d", 7411)]
    assert addresses(hosts=["b:2"]) == [("b", 2)]
    monkeypatch.setenv("FFS_CLIENT__HOSTS", "c:3,d:4")
    assert addresses(url="ffs://a:1") == [("a", 1), ("c", 3), ("d", 4)]
    with pytest.raises(ConfigError, match="no metadata server in 'ffs://b:x'"):
        addresses(url="ffs://a:1", hosts=["b:x"])
    monkeypatch.delenv("FFS_CLIENT__HOSTS")
    with pytest.raises(ConfigError, match="no metadata server"):
        addresses()
    fs = FFSFileSystem(url="ffs://a:1", hosts=["b:2"])
    assert pickle.loads(pickle.dumps(fs)) is fs
    assert FFSFileSystem(url="ffs://a:1", hosts=["c:3"]) is not fs
    assert FFSFileSystem(hosts=["a:1"]).unstrip_protocol("/x") == "ffs://a:1/x"


def test_a_misspelt_keyword_is_a_type_error_that_helps() -> None:
    with pytest.raises(TypeError, match=r"'stall_msec'.*did you mean 'stall_ms'"):
        FFSFileSystem(url="ffs://h:1", stall_msec=5)
    with pytest.raises(TypeError, match="did you mean 'key_file'"):
        fsspec.filesystem("ffs", keyfile="x")
    with pytest.raises(ConfigError, match="stall_ms"):
        FFSFileSystem(url="ffs://h:1", stall_ms=-1)


def test_fsspec_s_own_keywords_are_taken() -> None:
    fs = FFSFileSystem(
        url="ffs://h:1",
        asynchronous=True,
        loop=None,
        batch_size=3,
        skip_instance_cache=True,
        use_listings_cache=False,
        listings_expiry_time=1,
        max_paths=9,
    )
    assert fs.asynchronous and fs.batch_size == 3


def test_construction_starts_nothing_and_pickles_as_configuration() -> None:
    before = threading.enumerate()
    fs = FFSFileSystem(url="ffs://h:1", stall_ms=33)
    again = pickle.loads(pickle.dumps(fs))
    assert threading.enumerate() == before
    assert again is fs, "the same configuration is the same object"
    assert again.config.stall_ms == 33
    assert FFSFileSystem(url="ffs://h:1", stall_ms=33) is fs
    assert FFSFileSystem(url="ffs://h:1", stall_ms=34) is not fs


def test_no_key_is_said_at_the_first_use() -> None:
    fs = FFSFileSystem(url="ffs://h:1", skip_instance_cache=True)
    with pytest.raises(ConfigError, match="no cluster key") as caught:
        fs.ls("/")
    assert "FFS_KEY_FILE" in caught.value.hint


@pytest.mark.parametrize("url", ["http://x", "127.0.0.1:7411", "ffs://", "ffs://host:port", "x"])
def test_a_url_that_is_none_is_refused_at_construction(url: str) -> None:
    with pytest.raises(ConfigError, match="no metadata server"):
        FFSFileSystem(url=url, skip_instance_cache=True)
