"""The attacks on updates that TUF's authors and Uptane's list, each refused with its code.

The numbers, A01 to A11 and A13 to A16, are those of `test_attack_list`. What is asserted beside the
code: what a board keeps (floors, metadata) stays such that the honest repository is believed again.
"""

import copy

import pytest
from asking import PATIENT, QUICK, Board
from repository_simulator import DAY, Fault, Repository, WebServer, new_signer

from agent.ota import trust
from agent.ota.jobs import Resolved

BUNDLE = bytes(range(256)) * 400  # 102,400 bytes


@pytest.fixture
def repository():
    made = Repository()
    made.add("ssd", "1.0", BUNDLE, release_counter=16, security_floor=14)
    return made


@pytest.fixture
def server(repository):
    with WebServer(repository.files) as running:
        yield running


@pytest.fixture
def board(tmp_path, repository, server):
    return Board(tmp_path, repository, server.url)


def refused(said, code):
    assert not isinstance(said, Resolved), said
    assert said.code == code, said
    return said


def found(said):
    assert isinstance(said, Resolved), said
    return said


def downloaded(board, target):
    said = board.fetch(target)
    assert getattr(said, "sha256", None) == target.sha256, said
    assert board.part.read_bytes() == BUNDLE


def test_an_honest_repository_is_believed(board):
    said = found(board.ask("ssd", "1.0"))
    assert said.target.custom.release_counter == 16
    assert said.floors.root_version == 1
    assert said.floors.targets_version == 2
    assert said.floors.time == board.at
    assert said.expires_at == board.at + 30 * DAY.total_seconds()
    downloaded(board, said.target)


@pytest.mark.parametrize("how", ["swapped", "one bit"])
def test_a01_other_bytes_under_a_signed_name(board, server, how):
    target = found(board.ask("ssd", "1.0")).target
    flipped = bytearray(BUNDLE)
    flipped[len(BUNDLE) // 2] ^= 1
    server.faults["targets/"] = Fault(
        body=bytes(flipped) if how == "one bit" else bytes(len(BUNDLE))
    )
    said = refused(board.fetch(target), "E_HASH")
    assert not said.is_final
    assert board.part.stat().st_size == 0
    server.faults.clear()
    downloaded(board, target)


def test_a01_whole_repository_of_a_stranger(board, server):
    stranger = Repository()
    stranger.add("ssd", "1.0", b"bad", release_counter=99)
    server.files = stranger.files
    refused(board.ask("ssd", "1.0"), "E_SIG")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a01_metadata_of_a_stranger_s_key(board, repository, role):
    repository.signers[role] = [new_signer()]
    repository.add("ssd", "2.0", b"bad")
    refused(board.ask("ssd", "2.0"), "E_SIG")


def test_a02_old_timestamp(board, repository, server):
    old = dict(repository.files)
    repository.add("ssd", "1.1", b"newer", release_counter=17)
    found(board.ask("ssd", "1.1"))
    server.files = old
    refused(board.ask("ssd", "1.0"), "E_ROLLBACK")
    server.files = repository.files
    found(board.ask("ssd", "1.1"))


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_a02_older_version_signed_by_the_online_key(board, repository, role):
    """Who has the online key can sign a fresh timestamp, and not one over an older snapshot."""
    old = copy.deepcopy(repository.snapshot)
    repository.add("ssd", "1.1", b"newer", release_counter=17)
    found(board.ask("ssd", "1.1"))
    if role == "snapshot":
        repository.snapshot.version = old.version - 1
    else:
        repository.snapshot.meta = old.meta
    repository.publish_snapshot()
    refused(board.ask("ssd", "1.1"), "E_ROLLBACK")


def test_a03_rollback_after_a_power_cut_emptied_the_metadata(board, repository, server):
    """python-tuf alone believes this one."""
    old = dict(repository.files)
    repository.add("ssd", "1.1", b"newer", release_counter=17)
    found(board.ask("ssd", "1.1"))
    kept = board.floors
    board.lose_metadata()
    server.files = old
    refused(board.ask("ssd", "1.0"), "E_ROLLBACK")
    assert board.floors == kept
    server.files = repository.files
    found(board.ask("ssd", "1.1"))


def test_a03_old_roots_after_a_power_cut(board, repository, server):
    old = dict(repository.files)
    repository.rotate("targets")
    repository.publish_targets()
    found(board.ask("ssd", "1.0"))
    assert board.floors.root_version == 2
    board.lose_metadata()
    server.files = old
    assert "root" in refused(board.ask("ssd", "1.0"), "E_ROLLBACK").message


def test_a03_emptied_metadata_and_an_honest_repository(board, repository):
    first = found(board.ask("ssd", "1.0"))
    board.lose_metadata()
    assert found(board.ask("ssd", "1.0")).floors == first.floors


@pytest.mark.parametrize(("counter", "code"), [(15, None), (14, "E_ROLLBACK"), (1, "E_ROLLBACK")])
def test_a04_below_the_security_floor(board, repository, counter, code):
    """What is older than the newest may be gone back to; what is below the floor may not."""
    import msgspec

    board.floors = msgspec.structs.replace(board.floors, release_counter=17, security_floor=15)
    repository.add("ssd", "0.9", b"older", release_counter=counter, security_floor=1)
    said = board.ask("ssd", "0.9")
    if code is None:
        found(said)
    else:
        assert refused(said, code).is_final


def test_a05_indefinite_freeze(board, server):
    found(board.ask("ssd", "1.0"))
    board.at += 42 * DAY.total_seconds()
    kept = board.floors
    said = refused(board.ask("ssd", "1.0"), "E_FREEZE")
    assert said.repo_stale_days == pytest.approx(12, abs=0.1)
    assert not said.is_final
    assert board.floors == kept


@pytest.mark.parametrize("role", ["root", "targets", "snapshot"])
def test_a05_each_role_expires(board, repository, role):
    getattr(repository, role).expires = repository.now - DAY
    if role == "root":
        repository.publish_root()
    else:
        repository.publish_targets()
    said = refused(board.ask("ssd", "1.0"), "E_FREEZE")
    assert role in said.message


def test_a06_freeze_and_a_slow_clock(board):
    """python-tuf alone believes what expired long ago; the floor does not go back."""
    found(board.ask("ssd", "1.0"))
    board.at += 29 * DAY.total_seconds()
    found(board.ask("ssd", "1.0"))
    late = board.at
    board.at, board.clock_trusted = late - 60 * DAY.total_seconds(), False
    said = found(board.ask("ssd", "1.0"))
    assert said.at == late
    assert said.clock_trusted is False
    board.at = late + 2 * DAY.total_seconds()
    refused(board.ask("ssd", "1.0"), "E_FREEZE")


def test_a06_an_untrusted_clock_never_raises_the_floor(board):
    board.clock_trusted = False
    assert found(board.ask("ssd", "1.0")).floors.time == 0.0


def test_a07_fast_clock(board):
    found(board.ask("ssd", "1.0"))
    right = board.at
    board.at += 20 * 365 * DAY.total_seconds()
    refused(board.ask("ssd", "1.0"), "E_FREEZE")
    assert board.floors.time == right
    board.at = right + 60
    found(board.ask("ssd", "1.0"))


@pytest.mark.parametrize("file", ["2.root", "timestamp", "2.snapshot", "2.targets"])
@pytest.mark.parametrize("how", ["endless", "long"])
def test_a08_endless_metadata(board, server, file, how):
    caps = {"2.root": 512_000, "timestamp": 16_384, "2.snapshot": 2_000_000, "2.targets": 5_000_000}
    fault = Fault(endless=True) if how == "endless" else Fault(body=bytes(6_000_000))
    server.faults[f"metadata/{file}.json"] = fault
    refused(board.ask("ssd", "1.0"), "E_SIZE")
    # What the kernels hold on both sides comes on top of what was read.
    kept = sum(path.stat().st_size for path in board.metadata.rglob("*") if path.is_file())
    assert kept < caps[file] + 20_000


@pytest.mark.parametrize(
    "fault",
    [
        Fault(endless=True),
        Fault(more=bytes(1 << 20)),
        Fault(more=bytes(1 << 20), chunked=4096),
        Fault(more=bytes(1 << 20), no_length=True),
        Fault(more=b"!", chunked=7000),
    ],
    ids=["endless", "declared", "chunked", "until closed", "one byte"],
)
def test_a08_target_longer_than_signed(board, server, fault):
    target = found(board.ask("ssd", "1.0")).target
    server.faults["targets/"] = fault
    refused(board.fetch(target), "E_SIZE")
    assert board.part.stat().st_size <= len(BUNDLE)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
@pytest.mark.parametrize("where", ["timestamp", "targets/"])
def test_a08_nothing_is_unpacked_on_the_way(board, server, encoding, where):
    target = found(board.ask("ssd", "1.0")).target
    server.faults[where] = Fault(headers=(("Content-Encoding", encoding),))
    said = board.ask("ssd", "1.0") if where == "timestamp" else board.fetch(target)
    refused(said, "E_NET")
    assert all(one.headers["accept-encoding"] == "identity" for one in server.requests)


@pytest.mark.parametrize(
    "fault", [Fault(drip_s=0.05), Fault(drip_head_s=0.05)], ids=["body", "head"]
)
@pytest.mark.parametrize("where", ["timestamp", "targets/"])
def test_a09_slow_retrieval(board, server, repository, fault, where):
    target = found(board.ask("ssd", "1.0")).target
    server.faults[where] = copy.copy(fault)
    board.limits = QUICK
    said = board.ask("ssd", "1.0") if where == "timestamp" else board.fetch(target)
    assert not refused(said, "E_SLOW").is_final
    with WebServer(repository.files) as other:
        board.urls.append(other.url)
        assert found(board.ask("ssd", "1.0")).mirror == (1 if where == "timestamp" else 0)
        downloaded(board, target)


def test_a09_chunk_sizes_byte_by_byte(board, server):
    """Inside http.client nobody looks at the time while it reads a chunk's size."""
    target = found(board.ask("ssd", "1.0")).target
    server.faults["targets/"] = Fault(
        body=b"0" * 100_000,
        drip_s=0.05,
        no_length=True,
        headers=(("Transfer-Encoding", "chunked"),),
    )
    board.limits = QUICK
    refused(board.fetch(target), "E_SLOW")


def test_a10_new_targets_with_an_old_snapshot(board, repository, server):
    old = dict(repository.files)
    repository.add("ssd", "1.1", b"newer")
    mixed = {**repository.files, "metadata/timestamp.json": old["metadata/timestamp.json"]}
    mixed["metadata/2.targets.json"] = repository.files["metadata/3.targets.json"]
    server.files = mixed
    assert board.ask("ssd", "1.1").code in ("E_HASH", "E_SIZE")


@pytest.mark.parametrize(
    ("custom", "says"),
    [
        ({"name": "other"}, "says it is other@2.0"),
        ({"version": "1.0"}, "says it is ssd@1.0"),
        ({"boards": ["jetson-*", "rpi-5*"]}, "is for jetson-*, rpi-5*; this is rpi-4b"),
        ({"min_agent": "0.4"}, "needs edge-agent 0.4; this is 0.3.0"),
        ({"min_agent": "soon"}, "needs edge-agent soon"),
        ({"release_counter": "many"}, "release_counter"),
        ({"release_counter": 3, "security_floor": 4}, "above its release_counter"),
        ({"boards": "rpi-4b"}, "boards"),
    ],
)
def test_a11_for_another_board_or_program(board, repository, server, custom, says):
    repository.add("ssd", "2.0", b"other", **custom)
    said = refused(board.ask("ssd", "2.0"), "E_COMPAT")
    assert says in said.message
    assert said.is_final
    assert server.asked("targets/") == 0
    found(board.ask("ssd", "1.0"))


def test_a11_no_word_on_what_it_is(board, repository):
    repository.add("ssd", "2.0", b"other")
    repository.targets.targets["ssd/2.0.tar"].unrecognized_fields.clear()
    repository.publish_targets()
    refused(board.ask("ssd", "2.0"), "E_COMPAT")


def test_a13_fast_forward_and_its_cure(board, repository, server):
    """Who has the online key signs the highest version there is; other keys start anew."""
    found(board.ask("ssd", "1.0"))
    right = {role: getattr(repository, role).version for role in ("timestamp", "snapshot")}
    repository.timestamp.version = repository.snapshot.version = 2**31
    repository.publish_snapshot()
    found(board.ask("ssd", "1.0"))
    assert board.floors.timestamp_version > 2**31
    for role, version in right.items():
        repository.rotate(role)
        getattr(repository, role).version = version
    repository.publish_snapshot()
    said = found(board.ask("ssd", "1.0"))
    assert said.floors.timestamp_version == right["timestamp"] + 1
    assert said.floors.root_version == 3
    # Without its files, by the floors alone, it is the same.
    board.lose_metadata()
    found(board.ask("ssd", "1.0"))


def test_a13_cured_by_floors_alone(board, repository):
    repository.timestamp.version = 2**31
    repository.publish_timestamp()
    found(board.ask("ssd", "1.0"))
    board.lose_metadata()
    repository.rotate("timestamp")
    repository.timestamp.version = 7
    repository.publish_timestamp()
    assert found(board.ask("ssd", "1.0")).floors.timestamp_version == 8


def test_a13_the_cure_holds_through_a_failed_refresh(board, repository, server):
    """The root arrives, the rest does not: floors of the old keys must not come back."""
    repository.timestamp.version = 2**31
    repository.publish_timestamp()
    found(board.ask("ssd", "1.0"))
    repository.rotate("timestamp")
    repository.timestamp.version = 7
    repository.publish_timestamp()
    server.faults["timestamp"] = Fault(status=500, times=1)
    refused(board.ask("ssd", "1.0"), "E_NET")
    assert (board.floors.root_version, board.floors.timestamp_version) == (2, 0)
    found(board.ask("ssd", "1.0"))


def test_a13_an_added_key_lowers_no_floor(board, repository, server):
    """Only if what was signed before would not be believed any more."""
    old = dict(repository.files)
    repository.publish_timestamp()
    found(board.ask("ssd", "1.0"))
    signer = new_signer()
    repository.root.add_key(signer.public_key, "timestamp")
    repository.publish_root()
    board.lose_metadata()
    server.files = {**old, "metadata/2.root.json": repository.files["metadata/2.root.json"]}
    refused(board.ask("ssd", "1.0"), "E_ROLLBACK")


def test_a14_root_signed_by_one_of_two(tmp_path):
    repository = Repository(root_threshold=2)
    repository.add("ssd", "1.0", BUNDLE)
    with WebServer(repository.files) as server:
        board = Board(tmp_path, repository, server.url)
        found(board.ask("ssd", "1.0"))
        thief, whole = repository.signers["root"][0], repository.signers["root"]
        repository.signers["root"] = [thief]
        for role in ("targets", "snapshot", "timestamp"):
            repository.signers[role] = [new_signer()]
            repository.root.add_key(repository.signers[role][0].public_key, role)
        repository.publish_root()
        repository.add("ssd", "6.6", b"bad", release_counter=66)
        refused(board.ask("ssd", "6.6"), "E_SIG")
        assert board.floors.root_version == 1
        repository.signers["root"] = whole
        repository.root.version -= 1
        repository.publish_root()
        repository.publish_targets()
        found(board.ask("ssd", "1.0"))


def test_a14_one_key_that_signs_twice(tmp_path):
    """The same key under two ids counts once."""
    repository = Repository(root_threshold=2)
    repository.add("ssd", "1.0", BUNDLE)
    with WebServer(repository.files) as server:
        board = Board(tmp_path, repository, server.url)
        repository.signers["root"] = [repository.signers["root"][0]] * 2
        repository.publish_root()
        refused(board.ask("ssd", "1.0"), "E_SIG")


def test_a14_targets_key_that_was_replaced(board, repository):
    stolen = repository.rotate("targets")
    repository.publish_targets()
    found(board.ask("ssd", "1.0"))
    good, repository.signers["targets"] = repository.signers["targets"], stolen
    repository.add("ssd", "6.6", b"bad", release_counter=66)
    refused(board.ask("ssd", "6.6"), "E_SIG")
    repository.signers["targets"] = good
    repository.publish_targets()
    found(board.ask("ssd", "1.0"))


def test_a15_ten_roots_for_a_board_that_was_away(tmp_path):
    repository = Repository(root_threshold=2)
    with WebServer(repository.files) as server:
        board = Board(tmp_path, repository, server.url)
        repository.add("ssd", "1.0", BUNDLE)
        found(board.ask("ssd", "1.0"))
        for role in ("root", "targets", "snapshot", "timestamp", "root", "root", "targets", "root"):
            repository.rotate(role)
        repository.publish_root()
        repository.publish_targets()
        assert found(board.ask("ssd", "1.0")).floors.root_version == 10
        # The next time none of them is asked for again.
        before = server.asked("root.json")
        found(board.ask("ssd", "1.0"))
        assert server.asked("root.json") == before + 1


def test_a15_only_so_many_new_roots_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "MOST_NEW_ROOTS", 3)
    repository = Repository()
    for _ in range(6):
        repository.publish_root()
    repository.add("ssd", "1.0", BUNDLE)
    with WebServer(repository.files) as server:
        board = Board(tmp_path, repository, server.url)
        assert found(board.ask("ssd", "1.0")).floors.root_version == 4
        assert found(board.ask("ssd", "1.0")).floors.root_version == 7


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=404),
        Fault(status=500),
        Fault(status=302, headers=(("Location", "/metadata/again"),)),
        Fault(status=301, headers=(("Location", "http://127.0.0.2/elsewhere"),)),
        Fault(status=301, headers=(("Location", "https://example.com/"),)),
        Fault(status=302, headers=(("Location", "file:///etc/passwd"),)),
        Fault(status=302, headers=(("Location", "http://localhost:1/"),)),
        Fault(status=302),
        Fault(status=204),
        Fault(body=b"<html>Not found</html>"),
        Fault(body=b"[" * 16_000),
        Fault(cut_at=0.5),
        Fault(cut_at=0.0),
        Fault(drip_head_s=0.1),
    ],
    ids=["404", "500", "loop", "other host", "other https host", "file", "other port",
         "nowhere", "204", "html", "deep", "cut", "nothing", "drip"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["timestamp|again", "."], ids=["timestamp", "everything"])
def test_a16_a_bad_mirror_before_a_good_one(tmp_path, repository, server, fault, where):
    with WebServer(repository.files) as bad:
        bad.faults[where] = copy.copy(fault)
        limits = QUICK if fault.drip_head_s else PATIENT
        board = Board(tmp_path, repository, bad.url, server.url, limits=limits)
        said = found(board.ask("ssd", "1.0"))
        assert said.mirror == 1
        downloaded(board, said.target)
        assert bad.asked() < 30


def test_a16_a_stale_mirror_before_a_good_one(tmp_path, repository, server):
    with WebServer(dict(repository.files)) as stale:
        board = Board(tmp_path, repository, stale.url, server.url)
        repository.add("ssd", "1.1", BUNDLE + b"!", release_counter=17)
        assert found(board.ask("ssd", "1.1")).mirror == 1
        # From now on what the first one says is old news to this board.
        assert found(board.ask("ssd", "1.1")).mirror == 1


def test_a16_no_mirror_has_it(tmp_path, repository, server):
    board = Board(tmp_path, repository, server.url, server.url)
    said = refused(board.ask("ssd", "7.0"), "E_DESIRED")
    assert not said.is_final


def test_a16_credentials_stay_with_their_host(tmp_path, repository, server):
    with WebServer({}) as other:
        server.faults["timestamp"] = Fault(
            status=302, headers=(("Location", f"{other.url}metadata/timestamp.json"),)
        )
        url = server.url.replace("localhost", "board:secret@localhost")
        board = Board(tmp_path, repository, url)
        said = refused(board.ask("ssd", "1.0"), "E_NET")
        assert "secret" not in said.message
        assert other.requests == []
        assert server.requests[-1].headers["authorization"] == "Basic Ym9hcmQ6c2VjcmV0"


def test_a16_redirects_on_the_same_host_are_followed(board, server):
    server.faults["^metadata"] = Fault(status=302, headers=(("Location", "/moved"),), times=1)
    server.files["moved"] = b""
    refused(board.ask("ssd", "1.0"), "E_JSON")
    assert server.asked("moved") == 1
