"""SIGHUP: what changes the settings, and a program that takes its own place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config_file import load_config
from agent.daemon.reload import must_restart, settings_of
from agent.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent.parent
SETTINGS = """
[mqtt]
url = "mqtt://localhost"
username = "board"
password_file = "{folder}/password"
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "password").write_text("one\n")
    (tmp_path / "agent.toml").write_text(SETTINGS.format(folder=tmp_path))
    return tmp_path


def load(files):
    return lambda: load_config(files / "agent.toml")


def running(files):
    config, _ = load(files)()
    return settings_of(config)


def test_nothing_has_changed(files):
    before = running(files)
    assert not must_restart(before, load(files))


def test_comments_and_order_are_no_change(files):
    before = running(files)
    file = files / "agent.toml"
    file.write_text("# for the porch\n" + file.read_text())
    assert not must_restart(before, load(files))


def test_another_value_is_a_change(files):
    before = running(files)
    file = files / "agent.toml"
    file.write_text(file.read_text().replace("localhost", "127.0.0.1"))
    assert must_restart(before, load(files))


def test_another_password_under_the_same_name_is_a_change(files):
    before = running(files)
    (files / "password").write_text("another\n")
    assert must_restart(before, load(files))


def test_a_renewed_file_behind_a_link_is_a_change(files):
    """Certificates are renewed that way: the link stays, where it leads changes."""
    (files / "password").rename(files / "password.1")
    (files / "password").symlink_to("password.1")
    before = running(files)
    (files / "password.2").write_text("two\n")
    (files / "password").unlink()
    (files / "password").symlink_to("password.2")
    assert must_restart(before, load(files))


@pytest.mark.parametrize("text", ["[camera]\nnam = 3", "not TOML", "\0"])
def test_settings_that_cannot_be_used_are_refused_with_the_reason(files, text):
    before = running(files)
    (files / "agent.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"agent\.toml"):
        must_restart(before, load(files))


def test_a_file_that_is_gone_is_refused(files):
    before = running(files)
    (files / "agent.toml").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        must_restart(before, load(files))


PROGRAM = """
import os, signal, sys
from agent.daemon.reload import accept_signals, re_execute
from agent.daemon.systemd import Notifier

notifier = Notifier(os.environ)
hangups = []
signal.signal(signal.SIGHUP, lambda number, frame: hangups.append(number))
accept_signals()
life = int(os.environ.pop("LIFE", "1"))
leaked = sorted(int(name) for name in os.listdir("/proc/self/fd"))
print(life, os.getpid(), sys.argv[1:], notifier.variables, len(hangups), leaked, flush=True)
if life < 3:
    os.environ["LIFE"] = str(life + 1)
    kept = open(os.devnull)  # closed by taking its place
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    os.kill(os.getpid(), signal.SIGHUP)  # while nobody is there to take it
    re_execute(notifier.variables)
"""


def test_a_program_takes_its_own_place(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    variables = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}
    child = subprocess.Popen(
        [sys.executable, "-W", "error", str(program), "run", "--config", "a file"],
        env={**os.environ, **variables, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    lives = said.splitlines()
    descriptors = lives[0][lives[0].rindex("[") :]
    expected = f"{child.pid} ['run', '--config', 'a file'] {variables}"
    # A SIGHUP that came in between has waited for the new program's handler.
    assert lives == [
        f"1 {expected} 0 {descriptors}",
        f"2 {expected} 1 {descriptors}",
        f"3 {expected} 1 {descriptors}",
    ]


def test_signals_that_nobody_held_back_need_no_release():
    from agent.daemon.reload import accept_signals

    accept_signals()
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_children_that_were_killed_are_seen_off_before_another_program_takes_over():
    """It would not know them, and they would be there for ever without being alive."""
    program = (
        "import os, signal, subprocess, sys, time\n"
        "from agent.daemon.reload import see_off_children\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "child.kill()\n"
        "see_off_children(20)\n"
        "sys.exit(os.path.exists(f'/proc/{child.pid}'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, timeout=60, check=False)
    assert done.returncode == 0


def test_a_child_that_cannot_be_ended_is_not_waited_for():
    from agent.daemon.reload import see_off_children

    with subprocess.Popen(["sleep", "60"]) as child:
        see_off_children(0.1)
        assert child.poll() is None
        child.kill()
