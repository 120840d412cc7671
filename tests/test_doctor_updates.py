"""[update] of `edge-agent check`: real repositories and mirrors, and files that are no root."""

import json
import os
import socket
import time

import pytest
from brokers import free_port
from made_repository import Site, served

from agent.config import Config, DeviceConfig, MqttConfig, UpdateConfig
from agent.contract.updates import Floors
from agent.daemon.build_updates import STATE_FOLDER
from agent.doctor import updates
from agent.doctor.updates import Root, check_updates, judge_mirror, judge_root, read_root
from agent.ota.disk import RealDisk
from agent.ota.floors import FloorBook, FloorLog
from agent.ota.jobs import Refused
from agent.ota.slots import FLOORS_NAME

DAY_S = 86_400.0


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One model is published; nobody changes it."""
    made = Site(tmp_path_factory.mktemp("site")).init()
    made.publish()
    return made


def root_of(site):
    return str(site.folder / "metadata" / "1.root.json")


def checked(folder, *, is_synced=True, days=0.0, within_s=20.0, **update):
    """Return the findings by name; no state but warn needs anything, and nothing fails."""
    config = Config(device=DeviceConfig(state_dir=str(folder)), update=UpdateConfig(**update))
    found = check_updates(
        config,
        read_synced=lambda: is_synced,
        wall_clock=lambda: time.time() + days * DAY_S,
        within_s=within_s,
    )
    checks = {check.name: check for check in found}
    for check in checks.values():
        assert check.state == ("warn" if check.remedy else "ok"), check
    return checks


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({}, "until update.repository is set"),
        ({"enabled": False, "repository": "https://h/"}, "update.enabled = false"),
    ],
)
def test_one_quiet_line_where_nothing_is_wanted(tmp_path, update, said):
    [check] = checked(tmp_path, **update).values()
    assert (check.name, check.state) == ("updates", "ok")
    assert said in check.message


def test_each_mirror_by_itself(tmp_path, site):
    dead, stick = f"http://127.0.0.1:{free_port()}/models", (tmp_path / "stick").as_uri()
    with served(site.folder) as url:
        mirrors = (url, site.folder.as_uri(), dead, stick, "mqtt:")
        before = site.content()
        checks = checked(tmp_path / "state", repository=mirrors, root=root_of(site))
    assert list(checks) == [*(f"repository {place}" for place in range(1, 6)), "update_root"]
    for name, mirror in (("repository 1", url), ("repository 2", site.folder.as_uri())):
        assert checks[name].state == "ok"
        assert f"{mirror} is believed, until 2" in checks[name].message
        assert "it has 1 bundle of door" in checks[name].message
    for name, mirror, remedy in (
        ("repository 3", dead, "can be reached"),
        ("repository 4", stick, "plug it in"),
    ):
        assert checks[name].state == "warn"
        assert f"{mirror}/metadata/" in checks[name].message
        assert "(E_NET)" in checks[name].message
        assert remedy in checks[name].remedy
    assert "mqtt: is asked over the broker" in checks["repository 5"].message
    assert "version 1, good until 2" in checks["update_root"].message
    assert site.content() == before
    assert not (tmp_path / "state").exists()  # a check changes nothing


def test_a_root_of_another_repository(tmp_path, site):
    other = Site(tmp_path).init()
    checks = checked(tmp_path, repository=site.folder.as_uri(), root=root_of(other))
    assert "(E_SIG)" in checks["repository"].message
    assert f"copy its metadata/1.root.json to {root_of(other)}" in checks["repository"].remedy


def test_a_root_that_ended(tmp_path, site):
    checks = checked(tmp_path, repository=site.folder.as_uri(), root=root_of(site), days=800)
    assert "(E_FREEZE)" in checks["repository"].message
    assert "70 days ago" in checks["update_root"].message
    assert "repo refresh --also root" in checks["update_root"].remedy


def test_a_root_that_ended_and_was_followed_by_another(tmp_path):
    """What is installed on a board is where the chain begins, and may be old."""
    site = Site(tmp_path).init()
    site.refresh("root", "targets", days=800)
    checks = checked(tmp_path, repository=site.folder.as_uri(), root=root_of(site), days=801)
    assert {check.state for check in checks.values()} == {"ok"}, checks
    assert "it has nothing yet" in checks["repository"].message
    assert "version 1, and from there the repository led to version 2" in (
        checks["update_root"].message
    )


def test_a_repository_that_went_back(tmp_path, site):
    """The floors of the daemon hold here too; they are read and not touched."""
    folder = tmp_path / STATE_FOLDER
    folder.mkdir()
    newer = FloorBook(floors=Floors(root_version=1, timestamp_version=99))
    FloorLog(folder / FLOORS_NAME, RealDisk()).keep(newer)
    before = (folder / FLOORS_NAME).read_bytes()
    checks = checked(tmp_path, repository=site.folder.as_uri(), root=root_of(site))
    assert "this board has seen 99 (E_ROLLBACK)" in checks["repository"].message
    assert "has seen newer signatures" in checks["repository"].remedy
    assert [path.name for path in folder.iterdir()] == [FLOORS_NAME]
    assert (folder / FLOORS_NAME).read_bytes() == before


def test_a_clock_that_was_never_set_is_not_waited_for(tmp_path, site):
    local = checked(
        tmp_path, repository=site.folder.as_uri(), root=root_of(site), is_synced=False, days=-9999
    )
    assert "wait for it, for 10 minutes" in local["updates"].message
    assert local["repository"].state == "ok"
    assert "however long" in updates._clock(near_by=False).message


@pytest.mark.parametrize(
    ("mirrors", "broker", "near"),
    [
        ("https://models.example.com/, file:///stick", "mqtt://10.0.0.2", False),
        ("file:///stick, http://10.0.0.2/", "mqtt://broker.example.com", True),
        ("mqtt:", "mqtts://10.0.0.2:8883", True),
        ("mqtt:, file:///stick", "mqtt://broker.local", True),
        ("mqtt:", "mqtts://broker.example.com", False),
    ],
)
def test_what_is_behind_the_broker_is_as_near_as_that(mirrors, broker, near):
    """Boards that reach nothing but a broker near by may have no time server either."""
    config = Config(
        mqtt=MqttConfig(url=broker), update=UpdateConfig(repository=tuple(mirrors.split(", ")))
    )
    assert updates.is_near_by(config) is near


def test_a_mirror_that_says_nothing_is_given_up(tmp_path, site):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://user:s3cret@127.0.0.1:{silent.getsockname()[1]}/"
        began = time.monotonic()
        checks = checked(tmp_path, repository=url, root=root_of(site), within_s=0.2)
    assert time.monotonic() - began < 15.0
    assert "did not answer within 0.2 s and was given up (E_SLOW)" in checks["repository"].message
    assert "s3cret" not in checks["repository"].message


def test_no_process_left(tmp_path, site, monkeypatch):
    def none_left(job):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(updates, "UpdateProcess", none_left)
    checks = checked(tmp_path, repository="https://h/", root=root_of(site))
    assert "Resource temporarily unavailable (E_SYSTEM)" in checks["repository"].message


def written(signed):
    return json.dumps({"signatures": [], "signed": signed}).encode()


GOOD = {"_type": "root", "version": 3, "expires": "2030-01-01T00:00:00Z", "keys": {}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "(E_JSON)"),
        (b"<html>", "(E_JSON)"),
        (b"[" * 9999, "nested more than 32 deep (E_JSON)"),
        (b" " * 512_001, "more than 512000 bytes (E_SIZE)"),
        (written(GOOD)[:-2] + b', "version": 4}}', 'the key "version" twice'),
        (written(GOOD | {"_type": "timestamp"}), "is a 'timestamp' file, not a 'root'"),
        (written(GOOD | {"version": 0}), "$.signed.version"),
        (written(GOOD | {"version": "1"}), "$.signed.version"),
        (written(GOOD | {"expires": "2030-01-01"}), "$.signed.expires"),
        (written(GOOD | {"expires": "2030-01-01T00:00:00"}), "$.signed.expires"),
        (written({"_type": "root"}), "version"),
        (b'{"signatures": []}', "signed"),
    ],
    ids=["none", "empty", "page", "deep", "long", "twins", "timestamp", "version_0", "version_text",
         "day", "no_zone", "bare", "unsigned"],
)  # fmt: skip
def test_what_is_no_root(tmp_path, content, reason):
    path = tmp_path / "root.json"
    if content is not None:
        path.write_bytes(content)
    [check] = checked(tmp_path, repository="https://h/", root=str(path)).values()
    assert (check.name, check.state) == ("update_root", "warn")
    assert reason in check.message
    assert f"metadata/1.root.json to {path}" in check.remedy


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_holds_nothing_up(tmp_path, make):
    make(tmp_path / "root.json")
    assert "is no regular file" in read_root(tmp_path / "root.json").message


def test_a_root_that_anybody_may_write(tmp_path):
    path = tmp_path / "root.json"
    path.write_bytes(written(GOOD))
    path.chmod(0o666)
    root = read_root(path)
    assert (root.version, root.expires_at) == (3, 1_893_456_000.0)
    check = judge_root(str(path), root, 0, 1_800_000_000.0)
    assert "can be written by anybody" in check.message
    assert "chmod 0644" in check.remedy


@pytest.mark.parametrize(
    ("left_days", "state", "said"),
    [
        (61, "ok", "good until"),
        (59, "warn", "ends in 59 days"),
        (1.5, "warn", "ends in 1 day,"),
        (-1.5, "warn", "ended 1 day ago"),
    ],
)
def test_how_long_a_root_will_do(left_days, state, said):
    now = 1_800_000_000.0
    root = Root(version=1, expires_at=now + left_days * DAY_S)
    check = judge_root("/r", root, 1, now)
    assert check.state == state
    assert said in check.message


def test_a_word_that_ends_soon(tmp_path, site):
    """Twenty days of no refresh: who runs the repository has ten left."""
    checks = checked(tmp_path, repository=site.folder.as_uri(), root=root_of(site), days=25)
    assert "that date is 4 days away" in checks["repository"].message
    assert "repo refresh` every day" in checks["repository"].remedy


def test_every_refusal_has_its_remedy():
    for code in ("E_SIG", "E_ROLLBACK", "E_FREEZE", "E_HASH", "E_SIZE", "E_JSON", "E_NET",
                 "E_SLOW", "E_CLOCK", "E_SPACE", "E_SYSTEM"):  # fmt: skip
        refused = Refused(code=code, message="so it is", is_final=False)
        config = Config(update=UpdateConfig(repository="https://h/"))
        job = updates.job_of(config, 1_800_000_000.0, True, 1.0)
        check = judge_mirror("repository", "https://h/", refused, job, 1_800_000_000.0)
        assert check.state == "warn"
        assert check.message == f"https://h/: so it is ({code})"
