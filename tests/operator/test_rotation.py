"""Keys that are replaced, lost or stolen, and what boards make of it."""

from __future__ import annotations

import shutil

import pytest
from made_repository import Board, Site, served
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Targets

from agent.errors import AgentError, UnavailableError
from agent.operator import repo_commands, rotation
from agent.operator.metadata import read_repository


def test_ten_roots_later_a_board_that_was_away_follows(site, url, board):
    site.init()
    away = board()
    site.publish()
    for role in ("root", "targets", "online") * 3:
        site.rotate(role)
    assert read_repository(site.folder).root.version == 10
    assert away.fetch(url) is not None
    assert board("new").fetch(url) is not None
    assert repo_commands.run_status(site.call(), verify=True) == 0


def test_one_lost_root_key_is_replaced_by_the_other_two(site, url, board):
    site.init()
    one = board()
    site.lose("root-2")
    site.rotate("root", "root-2")
    names = {path.stem for path in site.keys.iterdir()}
    assert names == {"root-1", "root-3", "root-4", "targets-1", "targets-2", "online-1"}
    one.refresh(url)
    root = read_repository(site.folder).root
    assert [root.keys[keyid].unrecognized_fields["x-edge-agent-name"]
            for keyid in root.roles["root"].keyids] == ["root-1", "root-3", "root-4"]  # fmt: skip
    site.lose("root-1")  # and another one, later
    site.rotate("root", "root-1")
    one.refresh(url)


def test_two_lost_root_keys_are_the_end(site):
    site.init()
    site.lose("root-2", "root-3")
    kept = site.content()
    with pytest.raises(UnavailableError, match=r"1 of its keys found, and it takes 2.*root-2"):
        site.rotate("root", "root-2", "root-3")
    assert site.content() == kept
    site.publish()  # boards still get models until the root expires


def test_root_keys_come_from_several_places(site, url, board):
    site.init()
    sticks = [site.take(f"root-{number}") for number in (1, 2, 3)]
    one = board()
    with pytest.raises(UnavailableError, match="0 of its keys found"):
        site.rotate("targets")
    with pytest.raises(UnavailableError, match="1 of its keys found"):
        site.rotate("targets", keys=[site.keys, sticks[0]])
    site.rotate("targets", keys=[sticks[2], sticks[0], site.keys], new_keys=site.keys)
    site.publish()
    assert one.fetch(url) is not None
    assert (site.keys / "targets-3.key").exists()


@pytest.mark.parametrize("role", ["targets", "online"])
def test_a_lost_key_below_the_root_is_replaced(site, url, board, role):
    site.init()
    site.publish()
    one = board()
    one.refresh(url)
    site.lose(*(["targets-1", "targets-2"] if role == "targets" else ["online-1"]))
    site.rotate(role)
    assert one.fetch(url) is not None
    site.publish("1.1.0", 2)
    assert one.fetch(url, "door/1.1.0.tar") is not None


def test_a_stolen_targets_key_signs_nothing_after_the_rotation(site, url, board):
    site.init()
    one = board()
    thief = Site(site.home / "thief")
    thief.keys.mkdir(parents=True)
    for name in ("targets-1", "targets-2"):
        (thief.keys / f"{name}.key").write_bytes((site.keys / f"{name}.key").read_bytes())
        (thief.keys / f"{name}.key").chmod(0o600)
    site.rotate("targets")
    site.lose("targets-1", "targets-2")
    with pytest.raises(UnavailableError, match="targets: 0 of its keys found"):
        site.publish(keys=[thief.keys])
    # Metadata that the thief signs by other means, and the server serves.
    repository = read_repository(site.folder)
    newest = site.folder / "metadata" / f"{repository.targets.signed.version}.targets.json"
    forged: Metadata[Targets] = Metadata.from_bytes(newest.read_bytes())
    forged.signatures.pop(next(key.keyid for key in repository.keys("targets")))
    for key in repository.keys("targets"):
        forged.signatures.pop(key.keyid, None)
    newest.write_bytes(forged.to_bytes())
    with pytest.raises(RepositoryError):
        one.refresh(url)
    with pytest.raises(AgentError, match="is not signed by enough"):
        site.refresh()


def test_boards_with_the_old_root_refuse_one_that_does_not_follow(site, url, board, tmp_path):
    site.init()
    one = board()
    other = Site(tmp_path / "other").init()
    other.rotate("root")
    forged = other.folder / "metadata" / "2.root.json"
    (site.folder / "metadata" / "2.root.json").write_bytes(forged.read_bytes())
    with pytest.raises(UnsignedMetadataError):
        one.refresh(url)
    with pytest.raises(AgentError, match=r"2.root.json: does not follow from the one before"):
        site.refresh()


def test_only_keys_of_the_role_can_be_replaced(site):
    site.init()
    with pytest.raises(AgentError, match="--replace root-9: root has root-1, root-2, root-3"):
        site.rotate("root", "root-9")


def test_names_of_keys_are_never_used_again(site):
    site.init()
    site.rotate("root", "root-3")
    site.rotate("root", "root-4")
    planned = rotation.plan(read_repository(site.folder), "root", [], None)
    assert [key.name for key in planned.coming] == ["root-6", "root-7", "root-8"]


def test_a_rotation_far_from_the_server_says_what_is_left_to_do(site, url, board, capsys):
    site.init()
    one = board()
    server = site.take("online-1")
    site.rotate("targets")
    assert "at once, where the online key is: edge-agent repo refresh" in capsys.readouterr().err
    site.refresh(keys=[server])
    site.publish()
    site.refresh(keys=[server])
    assert one.fetch(url) is not None


def test_a_targets_key_that_stays_bridges_the_time_until_the_refresh(site, url, board, capsys):
    site.init()
    one = board()
    site.publish()
    server = site.take("online-1")
    site.lose("targets-1")
    site.rotate("targets", "targets-1")
    assert "until then boards get nothing new" not in capsys.readouterr().err
    assert one.fetch(url) is not None
    site.refresh(keys=[server])
    assert one.fetch(url) is not None


def test_the_servers_refresh_takes_what_was_signed_elsewhere_roots_last(site, url, tmp_path):
    """As the page for operators says: targets there, refresh there, then the new root."""
    server = Site(tmp_path / "server")
    site.init()
    shutil.copytree(site.folder, server.folder)
    server.keys.mkdir()
    (site.keys / "online-1.key").rename(server.keys / "online-1.key")
    root = (server.folder / "metadata" / "1.root.json").read_bytes()
    old, new = Board(tmp_path / "old", root), Board(tmp_path / "new", root)
    with served(server.folder) as address:
        old.refresh(address)
        server.refresh()  # its own timestamps go on meanwhile
        bundle = site.publish()
        site.rotate("targets")
        for pattern in ("targets/*/*", "metadata/*.targets.json", "", "metadata/*.root.json"):
            if not pattern:
                server.refresh()
            for path in site.folder.glob(pattern) if pattern else ():
                place = server.folder / path.relative_to(site.folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
            old.refresh(address)
        assert old.fetch(address) == bundle.read_bytes()
        assert new.fetch(address) == bundle.read_bytes()
        server.refresh()
        assert old.fetch(address) == bundle.read_bytes()
