"""systemd/repository/README.md: what it tells people to type is what the program takes."""

from __future__ import annotations

import getpass
import re
import shlex
import sys

import pytest
from commands import PROJECT
from made_repository import make_bundle

from agent.cli import build_parser, main
from agent.config_file import load_config
from agent.operator import keys

TEXT = (PROJECT / "systemd" / "repository" / "README.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]
# `edge-agent repo …`, and `repo …` or `fleet …` for short; with … or [ it is no command yet.
SPANS = [
    span.removeprefix("edge-agent ")
    for span in re.findall(r"`((?:edge-agent )?(?:repo|fleet) [^`]*)`", TEXT)
    if not re.search(r"[…\[]", span)
]
TYPED = [line.removeprefix("edge-agent ") for line in LINES if line.startswith("edge-agent ")]
NAMES = {"ID": "run-1", "G": "porches"}


def test_what_is_typed_is_understood():
    assert len(TYPED) >= 15
    for line in TYPED:
        build_parser().parse_args(shlex.split(line, comments=True))


def test_what_is_mentioned_is_there(capsys):
    """`repo init` is named in passing; `fleet rollback --rollout ID` is a whole command."""
    assert len(SPANS) >= 10
    for span in SPANS:
        words = [NAMES.get(word, word) for word in span.split()]
        if len(words) > 2 and words != ["fleet", "rollout", "--repo"]:
            build_parser().parse_args(words)
        else:
            with pytest.raises(SystemExit, match="0"):
                build_parser().parse_args([*words[:2], "--help"])


@pytest.mark.parametrize("name", ["agent.toml", "operator.toml"])
def test_settings_are_sound(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (block,) = [block for block in blocks if name in block]
    (tmp_path / name).write_text(block.replace("/etc/edge-agent/root.json", str(tmp_path / "root")))
    for file in ("root", "ca.pem", "operator.pem", "operator.key"):
        (tmp_path / file).touch(mode=0o600)
    assert load_config(tmp_path / name)[1] == []


def test_the_repository_s_whole_life_as_printed(tmp_path, monkeypatch, capsys):
    """Every `edge-agent repo` and `mv` line in the page's order; memory sticks are folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keys, "KDF_ROUNDS", 2)
    monkeypatch.setattr(getpass, "getpass", lambda _: "correct horse")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    make_bundle(tmp_path, "1.4.0", 17).rename("door.tar")
    for letter in "abcd":
        (tmp_path / "media" / f"stick-{letter}").mkdir(parents=True)
    ran = 0
    for line in LINES:
        here = line.replace("/media/", "media/")
        if line.startswith("mv "):
            for part in here.split(";"):
                _, source, place = part.split()
                (tmp_path / source).rename(tmp_path / place / source.rpartition("/")[2])
        elif line.startswith("edge-agent repo "):
            assert main(shlex.split(here, comments=True)[1:]) == 0, line
            ran += 1
    assert ran >= 10
    capsys.readouterr()
    sticks = [option for letter in "acd" for option in ("--keys", f"media/stick-{letter}")]
    assert main(["repo", "status", "models", "--verify", "--keys", "keys", *sticks]) == 0
    shown = capsys.readouterr().out
    assert "root-1* root-3* root-4*" in shown
    assert "targets-4* targets-5*" in shown
    assert "online-2*" in shown
