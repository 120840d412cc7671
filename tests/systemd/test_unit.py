"""The unit and what boards add to it, judged by systemd's own tools. Running: scripts/boot-test."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "systemd"
UNIT = FOLDER / "edge-agent.service"
DROP_INS = sorted((FOLDER / "edge-agent.service.d-examples").glob("*.conf"))
PROGRAM = "/opt/edge-agent/current/bin/edge-agent"
# systemd-analyze(1): exposure times ten; up to 2.0 it says "OK".
MOST_EXPOSURE = 20

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture(params=[None, *DROP_INS], ids=lambda path: path.name if path else "the unit")
def installed(request, tmp_path):
    """The unit alone and with each drop-in, beside a program that is there."""
    program = tmp_path / "edge-agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(PROGRAM, str(program)))
    if request.param is not None:
        folder = tmp_path / f"{UNIT.name}.d"
        folder.mkdir()
        shutil.copy(request.param, folder)
    return unit


@needs_systemd
def test_systemd_understands_every_line(installed):
    done = subprocess.run(
        ["systemd-analyze", "verify", str(installed)], capture_output=True, text=True, timeout=60
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.stem in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
def test_it_is_hardly_exposed(installed, record_property):
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager"]
    done = subprocess.run(
        [*command, f"--threshold={MOST_EXPOSURE}", str(installed)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge files (before v250)")
    score = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert score, done.stderr
    record_property("exposure", score[1])
    print(f"exposure {score[1]}")
    assert done.returncode == 0, score[0]


@pytest.mark.parametrize("path", [UNIT, *DROP_INS], ids=lambda path: path.name)
def test_comments_stand_on_lines_of_their_own(path):
    """systemd takes what stands behind a value for a part of it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or "#" not in line, line
        assert not line.endswith("\\"), "a continued line hides what follows"
        assert line == line.rstrip()


@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: path.name)
def test_a_drop_in_says_what_it_is_for(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w+", first)


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_what_the_daemon_relies_on():
    """Each of these is a promise that another part of the project counts on."""
    found = settings()
    once = {name: values[0] for name, values in found.items() if len(values) == 1}
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "ExecStart": f"{PROGRAM} run --config /etc/edge-agent/agent.toml",
        "Restart": "always",
        "RestartPreventExitStatus": "78",
        "StartLimitIntervalSec": "0",
        "WatchdogSec": "30",
        "TimeoutStopSec": "15",
        "KillMode": "mixed",
        "OOMPolicy": "continue",
        "User": "edge-agent",
        "StateDirectory": "edge-agent",
        "RuntimeDirectory": "edge-agent",
        "WantedBy": "multi-user.target",
    }
    assert {name: once.get(name) for name in expected} == expected
    assert found["ExecReload"][-1] == "/bin/kill -HUP $MAINPID"


def test_it_waits_for_no_network():
    found = settings()
    after = " ".join(found["After"]).split()
    assert "network.target" in after
    assert "network-online.target" not in " ".join(found["After"] + found["Wants"])


def test_cameras_may_be_plugged_in_later():
    """A class that is unknown when the unit starts stays forbidden; their modules come first."""
    found = settings()
    module = "modprobe@videodev.service"
    assert any(module in value.split() for value in found["After"])
    assert any(module in value.split() for value in found["Wants"])
    assert "char-video4linux rw" in found["DeviceAllow"]


def test_no_group_is_named_that_a_board_may_not_have():
    """A missing one would keep the unit from starting."""
    for path in (UNIT, *DROP_INS):
        assert "\nSupplementaryGroups=" not in path.read_text(encoding="utf-8"), path.name
