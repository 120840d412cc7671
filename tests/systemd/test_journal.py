"""Log lines as systemd's journal gets them, from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent

LEVELS = """
import logging
from agent.logs import configure_logging
configure_logging("DEBUG")
log = logging.getLogger("agent.some.where")
log.debug("a"); log.info("b"); log.warning("c"); log.error("d"); log.critical("e")
log.log(25, "f"); log.log(5, "left out"); log.log(60, "g"); log.info("")
"""
TRACEBACK = """
import logging
from agent.logs import configure_logging
configure_logging("INFO")
try:
    raise ValueError("two\\nlines")
except ValueError:
    logging.getLogger("agent").exception("it failed")
"""
UNCAUGHT = """
import threading
from agent.logs import configure_logging
configure_logging("INFO")
def fail():
    raise RuntimeError("in a thread")
def leave():
    raise SystemExit
for work in (fail, leave):
    thread = threading.Thread(target=work, name="agent.worker")
    thread.start(); thread.join()
raise KeyError("at the end")
"""
CHILD = """
import subprocess, sys
from agent.logs import configure_logging
configure_logging("INFO")
inner = "import logging; from agent.logs import configure_logging; configure_logging('INFO'); " \\
    "logging.getLogger('agent.vision').warning('from a child')"
subprocess.run([sys.executable, "-c", inner], check=True)
elsewhere = subprocess.run([sys.executable, "-c", inner], check=True, stderr=subprocess.PIPE)
sys.stdout.buffer.write(elsewhere.stderr)
"""


def journal_of(code, *, journal_stream=None):
    """Run a program whose stderr is what JOURNAL_STREAM says; return its stderr and stdout."""
    out, into = os.pipe()
    status = os.fstat(into)
    stream = journal_stream or f"{status.st_dev}:{status.st_ino}"
    with os.fdopen(out, encoding="utf-8") as journal:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                stderr=into,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(PROJECT), "JOURNAL_STREAM": stream},
                timeout=60,
                text=True,
            )
        finally:
            os.close(into)
        return journal.read().splitlines(), done.stdout


def test_each_level_has_its_priority():
    """As in syslog(3): 2 critical, 3 error, 4 warning, 6 informational, 7 debug."""
    lines, _ = journal_of(LEVELS)
    where = "agent.some.where"
    assert lines == [
        f"<7>{where}: a",
        f"<6>{where}: b",
        f"<4>{where}: c",
        f"<3>{where}: d",
        f"<2>{where}: e",
        f"<6>{where}: f",
        f"<2>{where}: g",
        f"<6>{where}: ",
    ]


def test_every_line_of_a_traceback_has_it():
    lines, _ = journal_of(TRACEBACK)
    assert lines[0] == "<3>agent: it failed"
    assert lines[1] == "<3>Traceback (most recent call last):"
    assert lines[-2:] == ["<3>ValueError: two", "<3>lines"]
    assert all(line.startswith("<3>") for line in lines)


def test_uncaught_exceptions_are_critical():
    lines, _ = journal_of(UNCAUGHT)
    assert all(line.startswith("<2>") for line in lines)
    assert lines[0] == "<2>agent: uncaught exception thread=agent.worker"
    assert "<2>RuntimeError: in a thread" in lines
    assert "<2>agent: uncaught exception" in lines
    assert lines[-1] == "<2>KeyError: 'at the end'"
    assert sum("uncaught exception" in line for line in lines) == 2  # SystemExit is none


def test_children_speak_for_themselves():
    """One that shares our stderr is in the journal too; one whose stderr is read is not."""
    lines, elsewhere = journal_of(CHILD)
    assert lines == ["<4>agent.vision: from a child"]
    assert elsewhere.rstrip().endswith("WARNING agent.vision: from a child")


@pytest.mark.parametrize("stream", ["1:2", "nonsense", ":"])
def test_a_stderr_that_is_not_the_journal_gets_plain_lines(stream):
    lines, _ = journal_of(TRACEBACK, journal_stream=stream)
    assert lines[0].endswith("ERROR   agent: it failed")
    assert lines[1] == "Traceback (most recent call last):"
