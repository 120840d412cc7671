"""The Debian package, really installed by dpkg in a throw-away copy of this system.

The package holds a stand-in for the agent, so that nothing is fetched; the real one is tried by
`real-package` beside this file.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import throwaway
from throwaway import DIES_SOON, PROJECT, kept, make_wheel, pretend_systemd, serving, version

pytestmark = [
    pytest.mark.skipif(throwaway.why_not() is not None, reason=str(throwaway.why_not())),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, of Debian"),
]
UNIT = "systemd/system/edge-agent.service"


@pytest.fixture(scope="session")
def packages(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of a tree whose unit says its version, put where every copy sees them."""
    make_wheel(wheels / "6", "6.0", run=DIES_SOON)
    for number in ("1", "2", "6"):
        tree = tmp_path_factory.mktemp("tree")
        for folder in ("scripts", "systemd"):
            shutil.copytree(PROJECT / folder, tree / folder)
        shutil.copy(PROJECT / "pyproject.toml", tree)
        unit = tree / "systemd" / "edge-agent.service"
        unit.write_text(unit.read_text().replace("Description=", f"Description={number}.0: "))
        script = tree / "scripts" / "install"
        assert "watch_s=20 " in script.read_text()
        script.write_text(script.read_text().replace("watch_s=20 ", "watch_s=1 "))
        wheel = str(wheels / number / f"edge_agent-{number}.0-py3-none-any.whl")
        build = [str(tree / "scripts" / "build-deb"), "--wheel", wheel]
        done = subprocess.run(build, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shutil.copy(tree / "dist" / f"edge-agent_{number}.0_all.deb", wheels)
    return wheels


def described(root, folder: str) -> str:
    """The description in a unit file, and so its version; empty where there is none."""
    path = root.path / folder / UNIT
    if not path.exists():
        return ""
    return path.read_text().split("Description=")[1].split(":")[0]


def test_the_packages_life(packages, chroot):
    pretend_systemd(chroot)

    def dpkg(*arguments: str):
        # python3-venv may be there by other means than dpkg; `--force-depends` only for that.
        return chroot.run("dpkg", "--force-depends", *arguments)

    done = dpkg("-i", "/mnt/edge-agent_1.0_all.deb")
    assert done.returncode == 0, done.stdout
    assert version(chroot) == serving(chroot) == "1.0"
    assert chroot.shell("command -v edge-agent") == "/usr/bin/edge-agent"
    assert chroot.shell("stat -c '%a %U:%G' /etc/edge-agent/agent.toml") == "640 root:edge-agent"
    assert (described(chroot, "usr/lib"), described(chroot, "usr/local/lib")) == ("1.0", "")

    chroot.shell("echo '# mine' >> /etc/edge-agent/agent.toml")
    done = dpkg("-i", "/mnt/edge-agent_2.0_all.deb")
    assert done.returncode == 0, done.stdout
    assert version(chroot) == serving(chroot) == "2.0"
    assert chroot.shell("tail -n 1 /etc/edge-agent/agent.toml") == "# mine"
    assert chroot.shell("stat -c '%a %U:%G' /etc/edge-agent/agent.toml") == "640 root:edge-agent"

    done = dpkg("-i", "/mnt/edge-agent_6.0_all.deb")
    assert done.returncode == 1
    assert "it ended" in done.stdout
    assert version(chroot) == serving(chroot) == "2.0"
    assert kept(chroot) == ["1.0", "2.0"]
    # dpkg has put the new unit in place; the version in use has its own all the same.
    assert (described(chroot, "usr/lib"), described(chroot, "usr/local/lib")) == ("6.0", "2.0")
    assert "Description=2.0" in (chroot.path / "run/stand-in/loaded").read_text()

    done = dpkg("-i", "/mnt/edge-agent_2.0_all.deb")
    assert done.returncode == 0, done.stdout
    assert version(chroot) == serving(chroot) == "2.0"
    assert (described(chroot, "usr/lib"), described(chroot, "usr/local/lib")) == ("2.0", "")

    assert dpkg("-r", "edge-agent").returncode == 0
    assert not (chroot.path / "opt/edge-agent").exists()
    chroot.shell("test -f /etc/edge-agent/agent.toml && test -d /var/lib/edge-agent")
    assert dpkg("-P", "edge-agent").returncode == 0
    chroot.shell("! test -e /etc/edge-agent && ! test -e /var/lib/edge-agent")
    assert chroot.run("getent", "passwd", "edge-agent").returncode == 2


def test_a_package_takes_over_from_the_script(packages, booted):
    serving(booted)
    # dpkg would ask what to do with settings that are not its own.
    booted.shell("rm /etc/edge-agent/agent.toml")
    done = booted.run("dpkg", "--force-depends", "-i", "/mnt/edge-agent_2.0_all.deb")
    assert done.returncode == 0, done.stdout
    assert version(booted) == serving(booted) == "2.0"
    assert kept(booted) == ["1.0", "2.0"]
    assert described(booted, "usr/local/lib") == ""
    for path in ("usr/local/bin/edge-agent", "etc/udev/rules.d/59-edge-agent-coral.rules"):
        assert not (booted.path / path).is_symlink()
        assert not (booted.path / path).exists()
