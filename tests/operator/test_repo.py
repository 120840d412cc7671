"""The repository: what python-tuf's client makes of it, over HTTP, with real keys."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import threading

import pytest
from made_repository import Site, make_bundle
from tuf.api.exceptions import ExpiredMetadataError
from tuf.api.metadata import Metadata, Root, Targets

from agent.errors import AgentError, UnavailableError
from agent.operator import changes, keys, repo_commands
from agent.operator.metadata import read_repository


def test_a_board_gets_what_was_published(site, url, board, capsys):
    site.init()
    one = board()
    assert one.fetch(url) is None
    bundle = site.publish()
    assert one.fetch(url) == bundle.read_bytes()
    target = one.refresh(url).get_targetinfo("door/1.0.0.tar")
    assert target.custom == {
        "name": "door",
        "version": "1.0.0",
        "release_counter": 1,
        "security_floor": 0,
        "boards": [],
        "min_agent": None,
    }


def test_root_is_two_of_three_and_snapshots_are_consistent(site, url):
    root: Root = Metadata.from_bytes(
        site.init().content()["repository/metadata/1.root.json"]
    ).signed
    assert root.consistent_snapshot
    assert {name: (len(role.keyids), role.threshold) for name, role in root.roles.items()} == {
        "root": (3, 2),
        "targets": (2, 1),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
    }
    assert {key.keytype for key in root.keys.values()} == {"ed25519"}
    assert round((root.expires - site.call().at).days) == 730


def test_keys_are_for_the_operator_alone_and_metadata_for_all(site):
    before = os.umask(0o077)
    try:
        site.init()
        site.publish()
    finally:
        os.umask(before)
    for path in [site.keys, *site.keys.iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    for path in site.folder.rglob("*"):
        if path.name != ".lock":
            assert stat.S_IMODE(path.stat().st_mode) in (0o644, 0o755)


def test_a_key_that_others_may_read_is_not_used(site):
    site.init()
    (site.keys / "online-1.key").chmod(0o644)
    with pytest.raises(AgentError, match=r"online-1.key: others may read"):
        site.refresh()


def test_keys_do_not_go_into_what_is_served(site):
    call = site.call(site.folder / "keys")
    with pytest.raises(AgentError, match="served to everybody"):
        repo_commands.run_init(call, with_passphrase=False)
    assert not site.content()


def test_nothing_is_made_over_a_repository_or_over_keys(site):
    site.init()
    with pytest.raises(AgentError, match="a repository already"):
        site.init()
    with pytest.raises(AgentError, match="holds keys already"):
        repo_commands.run_init(
            repo_commands.Call(
                folder=site.home / "other",
                keys=(site.keys,),
                passphrase_file=None,
                dry_run=False,
                as_json=False,
            ),
            with_passphrase=False,
        )


def test_a_counter_must_grow_and_a_version_keeps_its_content(site):
    site.init()
    bundle = site.publish("1.0.0", 5)
    kept = site.content()
    for version, counter in (("1.1.0", 5), ("1.2.0", 4)):
        with pytest.raises(AgentError, match=f"{version}: its release_counter {counter} is not"):
            site.publish(version, counter)
        (site.home / f"door-{version}.tar").unlink()
    site.publish("1.0.0", 5)  # the same once more: nothing to do
    assert site.content() == kept
    make_bundle(site.home, "1.0.0", 6)
    with pytest.raises(AgentError, match="already with other content"):
        repo_commands.run_publish(site.call(), bundle, channel=None)
    make_bundle(site.home, "0.1.0", 1, name="gate")  # another model counts by itself
    repo_commands.run_publish(site.call(), site.home / "gate-0.1.0.tar", channel=None)


def test_damaged_bundles_are_refused_before_anything_is_signed(site, tmp_path):
    site.init()
    kept = site.content()
    bundle = make_bundle(tmp_path)
    raw = bytearray(bundle.read_bytes())
    raw[raw.index(b"model door") + 3] ^= 1
    bundle.write_bytes(raw)
    with pytest.raises(AgentError, match=r"boards would refuse it: E_HASH: model.tflite"):
        repo_commands.run_publish(site.call(), bundle, channel=None)
    bundle.unlink()
    with pytest.raises(UnavailableError):
        repo_commands.run_publish(site.call(), bundle, channel=None)
    assert site.content() == kept


def test_a_bundle_that_changes_while_it_is_copied_is_not_published(site, monkeypatch):
    site.init()
    examine = repo_commands.examine

    def examine_and_change(path):
        bundle = examine(path)
        path.write_bytes(path.read_bytes().replace(b"door 1", b"door 2"))
        return bundle

    monkeypatch.setattr(repo_commands, "examine", examine_and_change)
    with pytest.raises(AgentError, match="was changed while it was read"):
        site.publish()
    assert read_repository(site.folder).targets.signed.targets == {}
    assert not list(site.folder.glob("targets/*/*"))


def test_channels_point_and_boards_do_not_see_them(site, url, board):
    site.init()
    site.publish("1.0.0", 1, channel="stable")
    site.publish("1.1.0", 2)
    promote = {"name": "door", "channel": "stable"}
    repo_commands.run_promote(site.call(), version="1.1.0", **promote)
    targets: Targets = read_repository(site.folder).targets.signed
    assert targets.unrecognized_fields["x-edge-agent-channels"] == {"door": {"stable": "1.1.0"}}
    kept = site.content()
    repo_commands.run_promote(site.call(), version="1.1.0", **promote)
    assert site.content() == kept
    with pytest.raises(AgentError, match="neither a version nor a channel"):
        repo_commands.run_promote(site.call(), version="9", **promote)
    repo_commands.run_promote(site.call(), name="door", version="stable", channel="porch")
    assert board().fetch(url, "door/1.1.0.tar") is not None


def test_targets_are_signed_in_one_place_and_timestamps_in_another(site, url, board, capsys):
    """The usual way: targets keys on a laptop, the online key on the server."""
    site.init()
    server = site.take("online-1")
    one = board()
    bundle = site.publish()
    assert "where the online key is: edge-agent repo refresh" in capsys.readouterr().err
    assert one.fetch(url) is None
    call = site.call()
    assert repo_commands.run_status(call, verify=False) == 1
    assert "boards do not see targets 2 yet" in capsys.readouterr().out
    with pytest.raises(UnavailableError, match=r"timestamp: 0 of its keys found.*online-1"):
        site.refresh()
    site.refresh(keys=[server])
    assert one.fetch(url) == bundle.read_bytes()


def test_old_metadata_are_refused_until_refreshed(site, url, board):
    site.init(days=-40)
    site.publish(days=-40)
    one = board()
    with pytest.raises(ExpiredMetadataError):
        one.refresh(url)
    assert repo_commands.run_status(site.call(), verify=False) == 1
    site.refresh()
    assert one.fetch(url) is not None
    assert repo_commands.run_status(site.call(), verify=True) == 0


def test_a_daily_refresh_writes_snapshots_only_when_they_are_due(site):
    site.init(days=-30)
    for day in range(-29, 1):
        site.refresh(days=day)
    repository = read_repository(site.folder)
    assert repository.timestamp.signed.version == 31
    assert repository.snapshot.signed.version == 3  # after 15 days each
    assert repository.is_signed("snapshot")


def test_root_and_targets_are_good_for_longer_when_asked(site, url, board):
    site.init(days=-700)
    one = board()
    site.refresh("root", "targets")
    one.refresh(url)
    repository = read_repository(site.folder)
    assert (repository.root.version, repository.targets.signed.version) == (2, 2)


@pytest.mark.parametrize("command", ["init", "publish", "promote", "rotate", "refresh"])
def test_dry_runs_change_nothing(site, command, capsys):
    if command != "init":
        site.init()
        site.publish()
    make_bundle(site.home, "1.1.0", 2)
    kept = site.content()
    times = {path: path.stat().st_mtime_ns for path in site.home.rglob("*")}
    capsys.readouterr()
    call = site.call(dry_run=True, as_json=True)
    {
        "init": lambda: repo_commands.run_init(call, with_passphrase=False),
        "publish": lambda: repo_commands.run_publish(
            call, site.home / "door-1.1.0.tar", channel=None
        ),
        "promote": lambda: repo_commands.run_promote(
            call, name="door", version="1.0.0", channel="stable"
        ),
        "rotate": lambda: repo_commands.run_rotate(
            call, role="root", replace=[], new_keys=None, with_passphrase=False
        ),
        "refresh": lambda: repo_commands.run_refresh(call, also=["root", "targets"]),
    }[command]()
    said = json.loads(capsys.readouterr().out)
    assert said["dry_run"]
    assert said["written"]
    assert site.content() == kept
    assert {path: path.stat().st_mtime_ns for path in site.home.rglob("*")} == times


def test_what_is_served_is_whole_after_each_file_that_is_written(site, url, board, monkeypatch):
    """Stopped anywhere, or asked at any moment, a command leaves what boards take."""
    seen = []
    write = changes.write_durably

    def write_and_ask(path, content, **options):
        write(path, content, **options)
        if path.is_relative_to(site.folder):
            fresh, old = board(f"fresh-{len(seen)}"), known
            seen.append((fresh.refresh(url), old.refresh(url), path.name))

    site.init()
    known = board("old")
    known.refresh(url)
    monkeypatch.setattr(changes, "write_durably", write_and_ask)
    site.publish("1.0.0", 1)
    site.publish("1.1.0", 2, channel="stable")
    for role in ("root", "online", "targets", "root"):
        site.rotate(role)
    site.refresh("root", "targets")
    assert len(seen) == 3 + 1 + 4 + 1 + 3 + 4 + 1 + 4
    assert read_repository(site.folder).root.version == 6


def test_two_commands_at_once_take_turns(site):
    site.init()
    go = threading.Barrier(4)
    done = []

    def refresh():
        go.wait()
        site.refresh()
        done.append(True)

    threads = [threading.Thread(target=refresh) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert read_repository(site.folder).timestamp.signed.version == 5


def test_a_command_that_finds_another_at_work_gives_up_in_the_end(site, monkeypatch):
    site.init()
    site.refresh()
    monkeypatch.setattr(changes, "WAITS_FOR_OTHERS_S", 0.1)
    with (site.folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="another command is at work"):
            site.refresh()


def test_damage_is_found_and_named(site, capsys):
    site.init()
    site.publish()
    bundle = next(site.folder.glob("targets/door/*"))
    raw = bundle.read_bytes()
    bundle.write_bytes(raw[:-1] + b"x")
    assert repo_commands.run_status(site.call(), verify=False) == 0
    assert repo_commands.run_status(site.call(), verify=True) == 1
    site.publish()  # as `status` says, and it takes no key
    assert bundle.read_bytes() == raw
    bundle.unlink()
    capsys.readouterr()
    assert repo_commands.run_status(site.call(as_json=True), verify=False) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["models"][0]["file"] == "missing"
    site.publish(keys=[site.home], channel=None)
    assert bundle.read_bytes() == raw
    assert "is published already; its file was missing" in capsys.readouterr().err
    targets = site.folder / "metadata" / "2.targets.json"
    targets.write_bytes(targets.read_bytes().replace(b"1.0.0", b"1.0.1"))
    with pytest.raises(AgentError, match=r"2.targets.json: is not signed by enough"):
        site.refresh()
    targets.write_bytes(b"{")
    with pytest.raises(AgentError, match="is damaged"):
        site.refresh()


def test_status_shows_keys_versions_and_days(site, capsys):
    site.init()
    site.publish(channel="stable")
    site.take("root-1")
    capsys.readouterr()
    assert repo_commands.run_status(site.call(as_json=True), verify=True) == 0
    said = json.loads(capsys.readouterr().out)
    roles = {role["role"]: role for role in said["roles"]}
    assert {name: round(role["days_left"]) for name, role in roles.items()} == {
        "root": 730,
        "targets": 365,
        "snapshot": 30,
        "timestamp": 30,
    }
    assert [(key["name"], key["here"]) for key in roles["root"]["keys"]] == [
        ("root-1", False),
        ("root-2", True),
        ("root-3", True),
    ]
    assert said["models"][0]["channels"] == ["stable"]
    assert repo_commands.run_status(site.call(days=25), verify=False) == 0
    shown = capsys.readouterr().out
    assert "timestamp expires in 5 days: edge-agent repo refresh" in shown
    assert "root-1 root-2* root-3*" in shown
    assert repo_commands.run_status(site.call(days=31), verify=False) == 1
    assert "timestamp expired 1 days ago" in capsys.readouterr().out


def test_passphrases_lock_keys_and_ssh_keygen_reads_them(site, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "KDF_ROUNDS", 2)
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("correct horse\n")
    wrong.write_text("battery\n")
    site.init(passphrase_file=secret)
    key = site.keys / "targets-1.key"
    for phrase, code in (("correct horse", 0), ("battery", 255)):
        shown = subprocess.run(
            ["ssh-keygen", "-y", "-P", phrase, "-f", key], capture_output=True, text=True
        )
        assert shown.returncode == code
    site.refresh()  # the online key has none
    site.lose("targets-2")  # one to open is enough for a test
    with pytest.raises(AgentError, match="this is not its passphrase"):
        site.publish(passphrase_file=wrong)
    site.publish(passphrase_file=secret)


def test_another_key_under_the_same_name_is_refused(site, tmp_path):
    site.init()
    other = Site(tmp_path / "other").init()
    (site.keys / "online-1.key").write_bytes((other.keys / "online-1.key").read_bytes())
    with pytest.raises(AgentError, match=r"online-1.key: is another key"):
        site.refresh()
    (site.keys / "online-1.key").write_bytes(b"not a key")
    with pytest.raises(AgentError, match="is not a key of this program"):
        site.refresh()


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json"])
def test_numbers_that_boards_have_seen_are_not_given_again(site, url, board, name, capsys):
    """Made anew, a lost file would have the number 1, which every board refuses."""
    site.init()
    one = board()
    one.refresh(url)
    lost = site.folder / "metadata" / name
    raw = lost.read_bytes()
    lost.unlink()
    capsys.readouterr()
    assert repo_commands.run_status(site.call(), verify=False) == 1
    assert f"{name.removeprefix('1.')} is missing; restore it" in capsys.readouterr().out
    kept = site.content()
    for command in (site.refresh, site.publish):
        with pytest.raises(AgentError, match="is missing; restore it from a copy"):
            command()
    (site.home / "door-1.0.0.tar").unlink()
    assert site.content() == kept
    lost.write_bytes(raw)
    site.publish()
    assert one.fetch(url) is not None


def test_another_folder_is_left_alone(site):
    site.folder.mkdir()
    with pytest.raises(UnavailableError, match="holds no repository"):
        site.refresh()
    assert not list(site.folder.iterdir())


def test_there_must_be_a_repository(site):
    with pytest.raises(UnavailableError, match="is not a folder"):
        site.refresh()
    with pytest.raises(UnavailableError, match="holds no repository"):
        read_repository(site.home)
