"""What is drawn on a terminal: bars, tables, a live view."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from fleet_rig import PROJECT


def on_terminal(rig, *arguments, state=True, columns=120):
    """Run a command on a terminal of so many columns; return its code and all it drew."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", *rig.arguments(*arguments, state=state)],
        cwd=PROJECT, stdin=follower, stdout=follower, stderr=follower,
        env=os.environ | {
            "TERM": "xterm", "COLUMNS": str(columns), "LINES": "12", "LANG": "C.UTF-8"
        },
    )  # fmt: skip
    os.close(follower)
    drawn = b""
    try:
        while part := os.read(leader, 65536):
            drawn += part
    except OSError:  # the other side is closed
        pass
    os.close(leader)
    return process.wait(30), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())


def test_a_rollout_draws_a_bar_for_each_wave(rig):
    boards = rig(10)
    code, drawn = on_terminal(boards, "rollout", "door@2.0", "--all", "--waves", "1,50%,100%")
    assert code == 0
    for wave, count in (("wave 1", "1/1"), ("wave 2", "4/4"), ("wave 3", "5/5")):
        assert wave in drawn
        assert count in drawn
    assert "door@2.0: 10 of 10 boards" in drawn
    code, drawn = on_terminal(boards, "rollout", "door@2.1-crash", "--all")
    assert code == 1
    assert "1 went wrong" in drawn


def test_the_live_table_has_as_many_boards_as_fit(rig):
    boards = rig(20)
    code, drawn = on_terminal(boards, "watch", "--seconds", "1", state=False)
    assert code == 0
    assert "20 boards, 20 online" in drawn
    assert "board-008" in drawn
    assert "board-009" not in drawn


def test_names_are_whole_on_a_narrow_terminal(rig):
    boards = rig(3)
    code, drawn = on_terminal(boards, "list", state=False, columns=60)
    assert code == 0
    assert all(text in drawn for text in ("board-001", "door@1.0.0", "cpu:xnnpack", "4.25"))
    assert "3 boards, 3 online" in drawn
    code, drawn = on_terminal(boards, "watch", "--seconds", "1", state=False, columns=50)
    assert code == 0
    assert all(text in drawn for text in ("board-001", "door@1.0.0", "health"))
    assert "…" not in drawn
    assert "xnnpack" not in drawn
