"""The shell scripts as text, and the udev rule against what the agent knows of Corals."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from throwaway import PROJECT

from agent.sensors.coral import USB_NEW, USB_STARTED

RULE = PROJECT / "systemd" / "udev" / "59-edge-agent-coral.rules"
SCRIPTS = [
    *(PROJECT / "scripts" / name for name in ("install", "uninstall", "build-deb")),
    *sorted((PROJECT / "scripts" / "packaging").iterdir()),
    PROJECT / "systemd" / "mosquitto" / "make-certificates",
    PROJECT / "tests" / "install" / "real-package",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_reads_it(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    programs = [str(script) for script in SCRIPTS if script.suffix != ".sh"]
    command = ["shellcheck", "--external-sources", *programs]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("program", ["install", "uninstall", "build-deb"])
def test_help_says_what_it_does_and_unknown_options_are_refused(program):
    path = str(PROJECT / "scripts" / program)
    done = subprocess.run([path, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert subprocess.run([path, "--no-such"], capture_output=True).returncode == 2


def test_the_rule_names_the_corals_that_the_agent_looks_for():
    rules = [line for line in RULE.read_text().splitlines() if line and line[0] != "#"]
    for vendor, product in (USB_NEW, USB_STARTED):
        (rule,) = [rule for rule in rules if f'"{vendor}"' in rule]
        assert f'ATTR{{idProduct}}=="{product}"' in rule
    assert all(rule.endswith('MODE="0660", GROUP="plugdev"') for rule in rules)
    assert any(rule.startswith('SUBSYSTEM=="apex"') for rule in rules)
