"""A broker with the shipped configuration, and throw-away systems to install into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import throwaway
from brokers import MOSQUITTO
from throwaway import (
    DIES_SOON,
    NO_MODEL,
    PROJECT,
    Root,
    install,
    make_root,
    make_wheel,
    pretend_systemd,
    serving,
)
from tls_site import Site, make_all, set_up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests in one of several workers: what they set up for all of them takes long."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("install"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates") / "all"
    make_all(folder)
    return folder


@pytest.fixture
def site(certificates: Path, tmp_path: Path) -> Iterator[Site]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    running = set_up(tmp_path, certificates, MOSQUITTO)
    running.broker.start()
    yield running
    running.broker.stop()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder / "1", "1.0")
    make_wheel(folder / "2", "2.0")
    make_wheel(folder / "3", "3.0")
    make_wheel(folder / "dies-soon", "4.1", run=DIES_SOON)
    make_wheel(folder / "no-model", "4.4", run=NO_MODEL)
    make_wheel(folder / "strict", "4.2", check='print("mqtt.url is wrong"); return 78')
    make_wheel(folder / "crashes", "4.3", check="return 139")
    make_wheel(folder / "large", "5.0", mb=250)
    return folder


@pytest.fixture(scope="session")
def saved(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system with version 1.0, installed once; what takes longest is a pip of its own."""
    reason = throwaway.why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("saved") / "upper"
    with closing(make_root(tmp_path_factory.mktemp("first"), wheels)) as root:
        root.shell("rm -rf /opt/edge-agent /var/lib/edge-agent /etc/edge-agent")
        pretend_systemd(root)
        said = install(root, "1")
        for step in ("making the user", "writing /etc/edge-agent", "building", "starting", "done"):
            assert step in said
        assert serving(root) == "1.0"
        root.shell("systemctl stop edge-agent.service")
        root.save(folder)
    return folder


@pytest.fixture
def booted(wheels: Path, saved: Path, tmp_path: Path) -> Iterator[Root]:
    """As after a boot: version 1.0 runs."""
    with closing(make_root(tmp_path, wheels, saved=saved)) as root:
        root.shell("mkdir -p /run/systemd/system")
        root.shell("systemctl daemon-reload; systemctl start edge-agent.service")
        yield root


@pytest.fixture
def chroot(wheels: Path, saved: Path, tmp_path: Path) -> Iterator[Root]:
    """Without systemd, but with the real systemctl; nothing but a pip is installed yet."""
    with closing(make_root(tmp_path, wheels, saved=saved)) as root:
        root.shell("rm /usr/local/bin/systemctl /usr/local/bin/systemd-run")
        root.shell("cp -a /opt/edge-agent/builder /opt/builder")
        done = root.run(str(PROJECT / "scripts" / "uninstall"), "--purge")
        assert done.returncode == 0, done.stdout
        root.shell("mkdir /opt/edge-agent; mv /opt/builder /opt/edge-agent/")
        yield root
