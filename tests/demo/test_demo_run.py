"""The demo as users run it: a real daemon, real brokers, with and without a terminal."""

from __future__ import annotations

import importlib.util
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

import agent
from agent.cli import main
from agent.demo.broker import SYSTEM_FOLDERS

ROOT = Path(agent.__file__).resolve().parent.parent
HAS_MOSQUITTO = bool(shutil.which("mosquitto") or shutil.which("mosquitto", path=SYSTEM_FOLDERS))
WITHIN_S = 180.0

needs_mosquitto = pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")
needs_amqtt = pytest.mark.skipif(
    importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed"
)
needs_rich = pytest.mark.skipif(
    importlib.util.find_spec("rich") is None, reason="rich is not installed"
)
needs_any_broker = pytest.mark.skipif(
    not HAS_MOSQUITTO and importlib.util.find_spec("amqtt") is None, reason="no broker is installed"
)

# The demo as on a board where mosquitto is nowhere, with more changes in front.
ELSEWHERE = """
import sys
import agent.demo.broker
agent.demo.broker.SYSTEM_FOLDERS = ""
from agent.cli import main
code = main(sys.argv[1:])
"""


@pytest.fixture
def surroundings(tmp_path):
    """An environment whose temporary folder is ours; nothing of the demo may be left in it."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    yield {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "HOME": str(home),
        "TERM": "xterm-256color",
    }
    assert list(temporary.iterdir()) == []
    assert list(home.iterdir()) == []


def demo_command(seconds, program=("-m", "agent")):
    return [sys.executable, *program, "demo", "--seconds", str(seconds)]


def run(command, environment, cwd):
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=WITHIN_S
    )


def descendants(pid):
    return psutil.Process(pid).children(recursive=True)


def still_running(processes):
    """Return those that run; an orphan whose new parent has not looked yet is dead as well."""
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def wait_for(claim):
    deadline = time.monotonic() + WITHIN_S
    while not (found := claim()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def named(processes, word):
    """Return those whose command line holds a word."""
    found = []
    for process in processes:
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@needs_mosquitto
def test_it_plays_the_clip_through_mosquitto(surroundings, tmp_path):
    done = run(demo_command(4), surroundings, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(" fps " in line for line in lines) >= 2
    assert "MQTT 5" in next(line for line in lines if line.startswith("broker"))
    assert " 0 lost" in next(line for line in lines if line.startswith("frames"))
    assert "Try next:" in lines
    assert "\x1b" not in done.stdout


@needs_any_broker
def test_a_stray_module_is_not_the_daemon_and_its_own_process_needs_no_numpy(
    surroundings, tmp_path
):
    (tmp_path / "agent.py").write_text("raise SystemExit('the wrong agent')\n")
    launcher = tmp_path / "bin" / "edge-agent"
    launcher.parent.mkdir()
    launcher.write_text(
        "import sys\nfrom agent.cli import main\ncode = main()\n"
        "heavy = {'numpy', 'cv2', 'ai_edge_litert'} & set(sys.modules)\n"
        "sys.exit(code or ','.join(heavy) or 0)\n"
    )
    done = run(demo_command(1, [str(launcher)]), surroundings, tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@needs_amqtt
def test_it_plays_the_clip_through_the_embedded_broker(surroundings, tmp_path):
    program = ("-c", ELSEWHERE + "sys.exit(code)")
    done = run(demo_command(1, program), {**surroundings, "PATH": str(tmp_path)}, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    broker = next(line for line in done.stdout.splitlines() if line.startswith("broker"))
    assert "amqtt" in broker
    assert "MQTT 3.1.1" in broker


@needs_amqtt
def test_a_mosquitto_that_does_not_start_is_replaced(surroundings, tmp_path):
    broken = tmp_path / "mosquitto"
    broken.write_text("#!/bin/sh\necho 'permission denied'\nexit 1\n")
    broken.chmod(0o755)
    done = run(demo_command(1), {**surroundings, "PATH": str(tmp_path)}, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "amqtt" in done.stdout


def test_without_any_broker_it_says_what_to_install(surroundings, tmp_path):
    program = ("-c", "import sys; sys.modules['amqtt'] = None\n" + ELSEWHERE + "sys.exit(code)")
    done = run(demo_command(4, program), {**surroundings, "PATH": str(tmp_path)}, tmp_path)
    assert done.returncode == 69
    assert "apt-get install mosquitto" in done.stderr
    assert "edge-agent[demo]" in done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9"])
def test_impossible_lengths_are_refused(capsys, seconds):
    assert main(["demo", "--seconds", seconds]) == 2
    assert "--seconds" in capsys.readouterr().err


def start_and_wait_for_results(environment, cwd):
    """Start the demo; return it and all its processes once results came."""
    process = subprocess.Popen(
        demo_command(60),
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if " fps " in line:
            return process, descendants(process.pid)
    pytest.fail(f"no results: {process.communicate()}")


@needs_any_broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # SIGTERM: the bench's tests
def test_a_signal_ends_everything_and_still_prints_the_summary(surroundings, tmp_path, number):
    process, children = start_and_wait_for_results(surroundings, tmp_path)
    assert len(children) >= 3  # broker, daemon, worker
    process.send_signal(number)
    output, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 128 + number, errors
    assert "capture to subscriber" in output
    assert still_running(children) == []


@needs_any_broker
def test_children_do_not_outlive_a_demo_that_is_killed(surroundings, tmp_path):
    process, children = start_and_wait_for_results(surroundings, tmp_path)
    process.kill()
    process.communicate(timeout=WITHIN_S)
    wait_for(lambda: not still_running(children))
    for left in (tmp_path / "tmp").iterdir():  # nobody was left to remove it
        shutil.rmtree(left)


@needs_any_broker
@pytest.mark.parametrize(
    ("victim", "code", "sentence"),
    [("run", 1, "the daemon died of SIGKILL"), ("broker", 69, "died of SIGKILL; it said")],
)
def test_a_death_is_told_in_a_sentence(surroundings, tmp_path, victim, code, sentence):
    process, children = start_and_wait_for_results(surroundings, tmp_path)
    brokers = named(children, "mosquitto") or named(children, "embedded_broker")
    (named(children, "agent.toml") if victim == "run" else brokers)[0].kill()
    _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == code
    assert sentence in errors
    assert "last words" in errors
    assert still_running(children) == []


@needs_any_broker
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(surroundings, tmp_path):
    process = subprocess.Popen(
        # As long as a worker takes to start on a busy machine, and results after that.
        demo_command(15),
        env=surroundings,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if " fps " in line:
            break
    named(descendants(process.pid), "agent.vision.worker")[0].kill()
    output, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, output
    assert " 0 lost" in output
    assert "the worker was replaced 1 time" in output


@needs_any_broker
def test_a_reader_that_goes_away_ends_it(surroundings, tmp_path):
    process, children = start_and_wait_for_results(surroundings, tmp_path)
    process.stdout.close()
    assert process.wait(WITHIN_S) == 1
    assert process.stderr.read() == ""
    process.stderr.close()
    assert still_running(children) == []


def read_terminal(master, until):
    """Return everything written to a terminal until its writer has ended."""
    written = b""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                written += os.read(master, 65536)
            except OSError:  # Linux: the last writer has closed it
                break
        elif until() is not None:
            break
    return written.decode("utf-8", "replace")


@needs_any_broker
@needs_rich
@pytest.mark.parametrize(("width", "is_interrupted"), [(100, False), (32, False), (80, True)])
def test_on_a_terminal_it_draws_and_gives_the_terminal_back(
    surroundings, tmp_path, width, is_interrupted
):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    environment = {**surroundings, "COLUMNS": str(width), "LINES": "30"}
    process = subprocess.Popen(
        demo_command(60 if is_interrupted else 3),
        env=environment,
        cwd=tmp_path,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    if is_interrupted:
        wait_for(lambda: named(descendants(process.pid), "agent.vision.worker"))
        process.send_signal(signal.SIGINT)
    written = read_terminal(master, process.poll)
    after = termios.tcgetattr(slave)
    os.close(slave)
    os.close(master)
    assert process.wait(WITHIN_S) == (130 if is_interrupted else 0), written
    assert after == before
    assert "waiting for" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    if not is_interrupted:
        for word in ("person", "inference", "capture to", "summary", "Try next:"):
            assert word in written
