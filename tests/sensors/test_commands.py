"""Tools that are there, that fail, that hang, that are not there."""

from agent.sensors.commands import ask


def script(tmp_path, monkeypatch, text):
    program = tmp_path / "tool"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_answers(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, 'echo "$1 $LC_ALL"; echo noise >&2')
    assert ask("tool", "word") == "word C"
    assert ask("no-such-tool-anywhere") is None
    assert ask("true") == "", "found where an ordinary user's PATH does not reach"


def test_failure_is_no_answer(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "echo half; exit 3")
    assert ask("tool") is None


def test_hanging_is_no_answer(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "exec sleep 60")
    assert ask("tool", within_s=0.05) is None


def test_not_a_program(tmp_path, monkeypatch):
    (tmp_path / "tool").write_text("\x7fELF nothing")
    (tmp_path / "tool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask("tool") is None
