"""Fixtures and rules of the whole suite: one shared cluster, logs on failure, no silent skips."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

from tests.harness import Cluster, live_clusters

CI = os.environ.get("FFS_CI", "") == "1"
"""Set by .ci/run: a skipped test is a failure there, since nobody would see what was not run."""

# A machine that is busy with something else must not fail a property; a found failure is printed so
# that it can be replayed anywhere.
hypothesis.settings.register_profile(
    "ffs",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ffs")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C
    # would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster of real processes for all tests that do not hurt it."""
    running = Cluster(tmp_path_factory.mktemp("cluster")).start()
    yield running
    running.stop()


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: for tests that sync thousands of times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ffs-test-") as directory:
        yield Path(directory)


@pytest.fixture
def new_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Start clusters that the test may kill, fill and break; takes Cluster's arguments."""
    made: list[Cluster] = []

    def make(storage: int = 1, config: dict[str, object] | None = None, **kwargs: Any) -> Cluster:
        made.append(Cluster(tmp_path / f"cluster-{len(made)}", storage, config, **kwargs))
        return made[-1].start()

    yield make
    for one in made:
        one.kill_all()


@pytest.fixture
def fs(cluster: Cluster) -> Iterator[Any]:
    """A file system of the shared cluster, not taken from fsspec's instance cache."""
    from ffs.client.filesystem import FFSFileSystem

    filesystem = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    yield filesystem
    filesystem.close()


@pytest.fixture
def fs_dir(fs: Any) -> str:
    """A fresh directory of the shared cluster's file system."""
    path = f"/test-{uuid.uuid4().hex}"
    fs.mkdir(path)
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a test the time that its mark says before its process is ended, not what others get."""
    usual_s = float(item.config.getini("faulthandler_timeout"))
    mark = item.get_closest_marker("timeout")
    if mark is not None and usual_s:
        beyond_s = usual_s - float(item.config.getini("timeout"))
        faulthandler.dump_traceback_later(
            mark.args[0] + beyond_s, exit=True, file=item.config.stash[fault_handler_stderr_fd_key]
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the daemons' logs to a failed test's report; turn skips into failures under FFS_CI=1."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for one in live_clusters():
            report.sections.append((f"cluster in {one.directory}", one.log_tails()))
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under FFS_CI=1, which allows no skips: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """A module that skips itself at import is a failure under FFS_CI=1 too."""
    outcome = yield
    report: pytest.CollectReport = outcome.get_result()  # type: ignore[attr-defined]
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped under FFS_CI=1, which allows no skips: {report.longrepr}"
