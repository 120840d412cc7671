"""scripts/install and scripts/uninstall, really run in a throw-away copy of this system.

What is installed is a stand-in of a few lines, so that a version takes a second to build; the
real thing, on systems as the boards have them, is tried by `real-package` beside this file.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import throwaway
from throwaway import (
    PROJECT,
    Root,
    install,
    kept,
    refused,
    runs,
    serving,
    version,
    wait_for,
)  # fmt: skip

pytestmark = pytest.mark.skipif(throwaway.why_not() is not None, reason=str(throwaway.why_not()))

HOME = "/opt/edge-agent"
# About as long as an installation of these takes here; no test depends on it.
WHOLE_S = 3.0


def test_everything_is_there_after_the_first_installation(booted):
    assert version(booted) == serving(booted) == "1.0"
    user = booted.shell("getent passwd edge-agent").split(":")
    assert user[5:] == ["/var/lib/edge-agent", "/usr/sbin/nologin"]
    assert {"edge-agent", "video", "plugdev"} <= set(booted.shell("id -nG edge-agent").split())
    assert booted.shell("stat -c '%a %U:%G' /etc/edge-agent/agent.toml") == "640 root:edge-agent"
    assert booted.shell("stat -c '%a %U:%G' /var/lib/edge-agent") == "750 edge-agent:edge-agent"
    settings = (booted.path / "etc/edge-agent/agent.toml").read_text()
    assert settings == (PROJECT / "systemd/agent.toml.example").read_text()
    unit = "/usr/local/lib/systemd/system/edge-agent.service"
    assert (booted.path / unit[1:]).read_text() == (
        PROJECT / "systemd/edge-agent.service"
    ).read_text()
    wanted = "/etc/systemd/system/multi-user.target.wants/edge-agent.service"
    assert booted.shell(f"readlink {wanted}") == unit
    assert (booted.path / "etc/udev/rules.d/59-edge-agent-coral.rules").exists()
    assert booted.shell("readlink /usr/local/bin/edge-agent") == f"{HOME}/current/bin/edge-agent"
    assert booted.shell(f"find {HOME} /etc/edge-agent ! -user root") == ""
    assert booted.shell(f"find {HOME} -perm -o+w ! -type l") == ""


def test_again_changes_nothing(booted):
    serving(booted)
    booted.shell("echo '# mine' >> /etc/edge-agent/agent.toml")
    ours = (
        f"{HOME} /etc/edge-agent /usr/local/lib/systemd /etc/systemd/system /etc/passwd /etc/group"
    )
    marks = f"find {ours} -newer /run/mark ! -name .lock ! -type d"
    booted.shell("sleep 0.01; touch /run/mark")
    said = install(booted, "1")
    assert "is installed already" in said
    assert "building" not in said
    assert booted.shell(marks) in ("", "/usr/local/bin/edge-agent")
    assert runs(booted) == ["1.0"]


def test_an_upgrade_keeps_settings_and_the_version_before(booted):
    booted.shell("echo '# mine' >> /etc/edge-agent/agent.toml; echo x > /var/lib/edge-agent/state")
    install(booted, "2")
    assert version(booted) == serving(booted) == "2.0"
    # Once for each version: what was tried is what goes on.
    assert runs(booted) == ["1.0", "2.0"]
    assert kept(booted) == ["1.0", "2.0"]
    install(booted, "3")
    assert kept(booted) == ["2.0", "3.0"]
    assert booted.shell(f"basename $(readlink {HOME}/previous)").startswith("2.0-")
    assert booted.shell("tail -n 1 /etc/edge-agent/agent.toml") == "# mine"
    assert booted.shell("cat /var/lib/edge-agent/state") == "x"
    assert not (booted.path / "run/systemd/system/edge-agent.service").exists()
    assert not (booted.path / "run/stand-in/guard").exists()
    # The way back is an installation like any other, of what is still there.
    assert "building" not in install(booted, "2")
    assert version(booted) == serving(booted) == "2.0"


@pytest.mark.parametrize(
    ("which", "reason", "tried", "watch_s"),
    [
        ("dies-soon", "it ended", True, 1),
        ("strict", "cannot use /etc/edge-agent/agent.toml", False, 1),
        ("crashes", "does not run here (code 139)", False, 1),
        # Models may take a multiple of it.
        ("no-model", "its models do not run", True, 0),
    ],
)
def test_a_version_that_does_not_work_leaves_the_old_one_in_service(
    booted, which, reason, tried, watch_s
):
    serving(booted)
    said = refused(booted, which, "--watch", str(watch_s))
    last = said.splitlines()[-1]
    assert last.startswith("error: version 4.")
    assert reason in last
    assert last.endswith("stays as it was")
    assert version(booted) == serving(booted) == "1.0"
    assert runs(booted)[-1] == "1.0"
    assert (len(runs(booted)) > 1) == tried
    assert kept(booted) == ["1.0"]
    assert not (booted.path / "run/systemd/system/edge-agent.service").exists()
    assert not (booted.path / "run/stand-in/guard").exists()


def test_without_systemd_it_installs_enables_and_says_so(chroot):
    said = install(chroot, "strict")
    assert "systemd does not run here" in said
    # A first version has nothing to be compared with.
    assert "agent.toml cannot be used" in said
    assert version(chroot) == "4.2"
    assert not (chroot.path / "run/edge-agent").exists()
    # The real systemctl made this link.
    chroot.shell("test -L /etc/systemd/system/multi-user.target.wants/edge-agent.service")


def test_who_disabled_and_stopped_the_service_finds_it_so_after_an_upgrade(booted):
    serving(booted)
    booted.shell("systemctl stop edge-agent.service; systemctl disable edge-agent.service")
    assert "stays so" in install(booted, "2")
    assert version(booted) == "2.0"
    assert runs(booted) == ["1.0"]


def test_a_full_card_is_said_and_the_old_version_goes_on(booted):
    booted.limit(230)
    # By its size the version before is small, so this is not foreseen, and happens half way.
    said = refused(booted, "large")
    assert "the card is full" in said
    assert said.splitlines()[-1].endswith("stays as it was")
    assert version(booted) == serving(booted) == "1.0"
    assert kept(booted) == ["1.0"]
    booted.limit(50)
    assert "MB free, and a new version needs" in refused(booted, "2")


def start_upgrade(root: Root, which: str, *, until: str) -> subprocess.Popen[str]:
    """Begin an installation; return when it says something with `until`.

    Nobody waits for its end, so its trial may be long: no machine is too slow to interrupt it.
    """
    script = str(PROJECT / "scripts" / "install")
    started = root.start(script, "--wheels", f"/mnt/{which}", "--watch", "60")
    assert started.stdout is not None
    said = ""
    for line in started.stdout:
        said += line
        if until in line:
            return started
    raise AssertionError(said)


def kill(started: subprocess.Popen[str], *, alone: bool = False) -> None:
    """Kill an installer; `alone`: not what it has started."""
    if alone:
        # nsenter, chroot and bash become one another; only --pid makes a child.
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    else:
        os.killpg(started.pid, signal.SIGKILL)
    assert started.stdout is not None
    started.stdout.close()
    started.wait()


def test_killed_while_building_the_version_in_use_is_untouched(booted):
    started = start_upgrade(booted, "2", until="building version")
    wait_for(lambda: kept(booted) == ["1.0", "2.0"])
    kill(started)
    assert version(booted) == serving(booted) == "1.0"
    assert kept(booted) == ["1.0", "2.0"]
    said = install(booted, "3")
    assert "did not finish" in said
    assert version(booted) == serving(booted) == "3.0"
    assert kept(booted) == ["1.0", "3.0"]


def test_killed_during_the_trial_systemd_or_the_next_run_brings_the_old_version_back(booted):
    started = start_upgrade(booted, "2", until="trying version")
    wait_for(lambda: serving(booted) == "2.0")
    kill(started)
    # A boot would find this, because /run is empty then.
    assert version(booted) == "1.0"
    assert serving(booted) == "2.0"
    booted.shell((booted.path / "run/stand-in/guard").read_text())
    assert serving(booted) == "1.0"
    started = start_upgrade(booted, "2", until="trying version")
    wait_for(lambda: serving(booted) == "2.0")
    kill(started)
    said = install(booted, "1")
    assert "was stopped during its trial" in said
    assert version(booted) == serving(booted) == "1.0"
    assert runs(booted) == ["1.0", "2.0", "1.0", "2.0", "1.0"]
    assert kept(booted) == ["1.0"]


def test_interrupted_by_a_key_during_the_trial_it_puts_the_old_version_back_itself(booted):
    started = start_upgrade(booted, "2", until="trying version")
    wait_for(lambda: serving(booted) == "2.0")
    os.killpg(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=120)
    assert "stopped during the trial" in said
    assert version(booted) == serving(booted) == "1.0"


def test_killed_at_any_moment_the_command_works_and_the_next_run_heals(booted):
    """Moments spread over one installation's length, with two versions in turns."""
    script = str(PROJECT / "scripts" / "install")
    for which, share in (("2", 0.4), ("2", 0.9), ("1", 0.6), ("2", 1.1)):
        started = booted.start(script, "--wheels", f"/mnt/{which}", "--watch", "0")
        try:
            started.communicate(timeout=share * WHOLE_S)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
        assert version(booted) in ("1.0", "2.0")
        booted.shell(f"test -e {HOME}/current/.complete")
    install(booted, "2")
    assert version(booted) == serving(booted) == "2.0"
    booted.shell(f"for v in {HOME}/versions/*; do test -e $v/.complete; done")


def test_an_installer_waits_for_what_a_killed_one_left_running(booted):
    kill(start_upgrade(booted, "large", until="building version"), alone=True)
    assert version(booted) == "1.0"
    install(booted, "2")
    assert version(booted) == serving(booted) == "2.0"
    assert kept(booted) == ["1.0", "2.0"]


def test_drop_ins_follow_what_the_board_has(booted):
    serving(booted)
    placed = "ls /usr/local/lib/systemd/system/edge-agent.service.d"
    board = "/sys/firmware/devicetree/base"
    stick = "/sys/bus/usb/devices/2-1"
    booted.shell(
        f"mkdir -p {board} {stick}; printf 'nvidia,tegra234' > {board}/compatible; "
        f"echo 18d1 > {stick}/idVendor; echo 9302 > {stick}/idProduct"
    )
    said = install(booted, "1")
    assert "jetson.conf, for what this board has" in said
    assert booted.shell(placed).split() == ["coral-usb.conf", "jetson.conf"]
    card = "/sys/bus/pci/devices/0000:01:00.0"
    booted.shell(
        f"rm -r {stick}; printf 'raspberrypi,5-model-b' > {board}/compatible; mkdir -p {card};"
        f"echo 0x1ac1 > {card}/vendor; echo 0x089a > {card}/device;"
        "mkdir /usr/lib/python3/dist-packages/picamera2;"
        "touch /usr/lib/python3/dist-packages/picamera2/__init__.py"
    )
    install(booted, "1")
    assert booted.shell(placed).split() == [
        "coral-pcie.conf", "libcamera.conf", "raspberry-pi-firmware.conf",
    ]  # fmt: skip
    # What apt alone has is seen from inside.
    booted.shell(f"{HOME}/current/bin/python -c 'import picamera2'")


def test_uninstall_leaves_settings_and_state_and_purge_does_not(booted):
    serving(booted)
    uninstall = str(PROJECT / "scripts" / "uninstall")
    assert booted.run(uninstall).returncode == 0
    booted.shell("test -f /etc/edge-agent/agent.toml && test -d /var/lib/edge-agent")
    left = f"find {HOME} /usr/local/bin/edge-agent /usr/local/lib/systemd /etc/systemd /etc/udev"
    left += " -name '*edge-agent*' 2>/dev/null || true"
    assert booted.shell(left) == ""
    assert booted.run("systemctl", "show", "edge-agent.service").stdout.startswith(
        "ActiveState=inactive"
    )
    assert booted.run(uninstall, "--purge").returncode == 0
    assert booted.run(uninstall, "--purge").returncode == 0
    gone = "ls -d /etc/edge-agent /var/lib/edge-agent"
    gone += "; getent passwd edge-agent; getent group edge-agent"
    assert booted.run("bash", "-c", f"{gone} | grep -c edge").stdout.splitlines()[-1] == "0"


def test_beside_the_debian_package_it_refuses(booted):
    booted.shell("touch /usr/lib/systemd/system/edge-agent.service")
    assert "sudo apt remove" in refused(booted, "2")
    assert kept(booted) == ["1.0"]


@pytest.mark.parametrize("options", [("--wheels",), ("--wheels", "/nowhere"), ("--watch", "soon")])
def test_wrong_options_are_said(booted, options):
    done = booted.install(*options)
    assert done.returncode == 1
    assert done.stdout.startswith("error: --")
