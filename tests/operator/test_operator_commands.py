"""The commands as people type them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
from commands import PROJECT, edge_agent
from made_repository import make_bundle

from agent.cli import build_parser, main
from agent.operator import keys as keys_room


def test_the_whole_path_of_a_new_operator(tmp_path, capsys):
    repository, keys = tmp_path / "models", tmp_path / "keys"
    bundle = make_bundle(tmp_path, "1.4.0", 17)
    with_keys = ["--keys", str(keys)]

    def run(*arguments, code=0):
        assert main(["repo", *map(str, arguments)]) == code
        return capsys.readouterr()

    run("init", repository, *with_keys)
    run("publish", repository, bundle, *with_keys, "--to", "beta")
    run("promote", repository, "door@beta", "--to", "stable", *with_keys)
    run("refresh", repository, *with_keys)
    run("rotate-keys", repository, "root", "--replace", "root-2", *with_keys)
    said = json.loads(run("status", repository, *with_keys, "--verify", "--json").out)
    assert said["ok"]
    assert said["models"][0]["channels"] == ["beta", "stable"]
    shown = run("status", repository).out
    assert "door@1.4.0  17" in shown
    assert shown.endswith("boards take it\n")
    run("status", tmp_path / "nothing", code=69)
    run("init", tmp_path / "other", code=69)


def test_in_a_process_of_its_own(tmp_path):
    done = edge_agent("repo", "init", tmp_path / "r", "--keys", tmp_path / "k", "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["written"]) == 10


def commands_of(parser, words=()):
    """Return every command and its parser."""
    yield words, parser
    for action in parser._actions:
        for name, child in (
            (getattr(action, "choices", None) or {}).items()
            if isinstance(getattr(action, "choices", None), dict)
            else ()
        ):
            yield from commands_of(child, (*words, name))


def test_every_command_has_help_that_can_be_printed():
    found = [words for words, parser in commands_of(build_parser()) if parser.format_help()]
    for room, names in {
        "repo": {"init", "publish", "promote", "rotate-keys", "refresh", "status", "serve-mqtt"},
        "fleet": {"list", "watch", "rollout", "rollback", "pin", "unpin"},
    }.items():
        assert names <= {words[1] for words in found if words[:1] == (room,) and len(words) == 2}


@pytest.mark.parametrize(
    "arguments",
    [
        ["repo", "promote", "r", "door", "--to", "stable"],
        ["repo", "promote", "r", "door@1", "--to", "a/b"],
        ["fleet", "rollout", "door@1 2", "--all"],
        ["fleet", "rollout", "door@1", "--all", "--waves", "0"],
        ["fleet", "rollout", "door@1", "--all", "--halt-on", "2"],
        ["fleet", "pin", "a/b"],
        ["fleet", "list", "--wait", "-1"],
        ["fleet", "list", "--wait", "long"],
        ["fleet", "rollout", "door@1", "--all", "--pace", "0"],
        ["fleet", "rollout", "--resume", "../x"],
        ["fleet", "rollback", "--rollout", "x/../y"],
        ["repo", "serve-mqtt", "r", "--most", "0"],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout", "door@2.0"], "which boards?"),
        (["rollout"], "which model?"),
        (["rollout", "door@stable", "--all"], "is stable a channel? then it takes --repo DIR"),
        (["rollback"], "which boards?"),
    ],
)
def test_what_is_missing_is_a_usage_error(arguments, says, capsys):
    """Before any broker is asked; boards know of no channels."""
    assert main(["fleet", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fleet", "list", "--broker", "http://x"], 78, "--broker: must be mqtt://"),
        (["fleet", "list", "--prefix", "a//b"], 78, "--prefix: must have no empty level"),
        (["fleet", "list", "--config", "/nowhere.toml"], 78, "cannot be read"),
    ],
)
def test_a_broker_that_is_none(arguments, code, says, capsys):
    assert main(arguments) == code
    assert says in capsys.readouterr().err


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from agent.cli import main
for words in ("init r --keys k", "publish r b", "promote r a@1 --to x", "rotate-keys r root",
              "refresh r", "status r"):
    print(main(["repo", *words.split()]), flush=True)
print(main(["fleet", "rollout", "a@1", "--all", "--repo", "r"]))
"""


@pytest.mark.parametrize("package", ["cryptography", "rich"])
def test_without_the_extra(package, tmp_path):
    """Each command that needs it says what to install; without rich there are plain tables."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    if package == "cryptography":
        says = 'edge-agent: this needs pip install "edge-agent[operator]" (cryptography is missing)'
        assert lines == [says] * 7
        assert done.stdout.split() == ["69"] * 7
    else:
        assert "edge-agent[operator]" not in done.stderr
        assert done.stdout.startswith("written ")


def test_the_command_line_loads_nothing_heavy():
    code = "import sys; from agent.cli import build_parser; build_parser(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout.split()
    heavy = {"tuf", "securesystemslib", "cryptography", "bcrypt", "rich", "paho", "numpy", "cv2",
             "psutil", "urllib3", "requests"}  # fmt: skip
    assert heavy.isdisjoint(name.partition(".")[0] for name in loaded)


def test_keys_are_never_said(tmp_path, monkeypatch, capfd):
    """Not in tables, documents, errors or logs, at any level; neither is a passphrase."""
    monkeypatch.setattr(keys_room, "KDF_ROUNDS", 2)
    phrase = tmp_path / "phrase"
    phrase.write_text("correct-horse-battery\n")
    repository, keys = tmp_path / "models", tmp_path / "keys"
    bundle = make_bundle(tmp_path)
    for words in (
        ["init", repository, "--json"],
        ["publish", repository, bundle, "--to", "stable"],
        ["rotate-keys", repository, "targets", "--json"],
        ["rotate-keys", repository, "online"],
        ["refresh", repository, "--also", "root"],
        ["status", repository, "--verify", "--json"],
    ):
        options = ["--keys", str(keys), "--passphrase-file", str(phrase)]
        assert main(["--log-level", "DEBUG", "repo", *map(str, words), *options]) == 0
    (keys / "root-1.key").chmod(0o644)
    assert main(["repo", "rotate-keys", str(repository), "root", *options]) == 1
    said = "".join(capfd.readouterr())
    assert "root-1.key: others may read this key" in said
    assert "correct-horse-battery" not in said
    files = sorted(keys.iterdir())
    assert len(files) == 6 + 2 + 1
    for file in files:
        assert not [line for line in file.read_text().splitlines() if line in said]
        if file.name != "root-1.key":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    served = b"".join(path.read_bytes() for path in repository.rglob("*") if path.is_file())
    assert b"PRIVATE KEY" not in served
