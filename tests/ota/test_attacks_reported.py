"""What an attacked board reports, and what it runs meanwhile, all the way from server to report.

A01 to A05, A07 to A11, A13, A14 and A16; the others need no server, or are no refusals. The
repository, the server, the TUF client and the updater are real; the disk, the workers and the time
are made up. That each attack is refused in all its variants is in `test_trust_attacks`.
"""

from dataclasses import dataclass, field

import pytest
from asking import PATIENT, QUICK, Board
from msgspec.structs import replace
from ota import update_world
from ota.update_world import World, model
from repository_simulator import DAY, Fault, Repository, WebServer, new_signer

from agent.ota.fetching import _reply
from agent.ota.jobs import Downloaded, Resolved

PHASES = {"metadata": "metadata", "download": "downloading"}
CONTENT = {version: version.encode() * 30_000 for version in ("1", "2", "3")}


class Attacked(World):
    """A board that really asks; what it downloads goes into the disk that is made up."""

    def __init__(self, board, repository, server):
        self.asks, self.repo, self.server = board, repository, server
        self.found = None
        super().__init__()

    def metadata(self, wanted, floors):
        def end():
            self.asks.floors = floors
            said = self.asks.ask(wanted.name, wanted.version)
            if isinstance(said, Resolved):
                self.found = said.target
            return _reply(said)

        return self.begin("metadata", end)

    def download(self, wanted, ref, size, floors):
        def end():
            said = self.asks.fetch(self.found)
            if isinstance(said, Downloaded):
                self.disk.fetched.add(ref.sha256)
            return _reply(said)

        return self.begin("download", end)

    def release(self, version, **custom):
        """Publish a release as an operator does, and tell the made-up disk what is in it."""
        made = model(version, counter=custom.get("release_counter"))
        content = CONTENT[version]
        floor = custom.get("security_floor", 0)
        number = made.ref.release_counter
        said = {"release_counter": number, "security_floor": floor} | custom
        path = self.repo.add("ssd", version, content, **said)
        sha256 = path.rpartition("/")[2].partition(".")[0]
        self.publish(replace_ref(made, sha256=sha256, security_floor=floor))
        return self.repository["ssd", version]


def replace_ref(made, **fields):
    return type(made)(ref=replace(made.ref, **fields))


@pytest.fixture
def board(tmp_path):
    """Runs version 1 of an honest repository."""
    repository = Repository()
    with WebServer(repository.files) as server:
        world = Attacked(Board(tmp_path, repository, server.url), repository, server)
        world.run()
        world.release("1", release_counter=17, security_floor=15)
        world.order(world.repository["ssd", "1"])
        world.run()
        assert world.report.phase == "committed"
        world.told.clear()
        yield world


@dataclass
class Attack:
    """What an attacker does once version 2 was published, and what ends it.

    codes: one of them is reported; is_final: no honest server is waited for
    """

    codes: set[str]
    begin: object
    end: object = field(default=lambda board: None)
    custom: dict = field(default_factory=lambda: {"release_counter": 18})
    is_final: bool = False


def fault(pattern, **fields):
    def begin(board):
        board.server.faults[pattern] = Fault(**fields)

    return {"begin": begin, "end": lambda board: board.server.faults.clear()}


def dripping(board):
    board.asks.limits = QUICK
    board.server.faults["targets/"] = Fault(drip_s=0.05)


def flowing(board):
    board.asks.limits = PATIENT
    board.server.faults.clear()


def serving(make):
    """The server has other files meanwhile: what `make` returns, given the board."""

    def begin(board):
        board.server.files = make(board)

    def end(board):
        board.server.files = board.repo.files

    return {"begin": begin, "end": end}


def of_a_stranger(board):
    stranger = Repository()
    stranger.add("ssd", "2", CONTENT["2"], release_counter=99)
    return stranger.files


def of_yesterday(board):
    """As the repository was, before the board took a release from it that came today."""
    old = dict(board.repo.files)
    board.order(board.release("3", release_counter=19))
    board.run()
    board.told.clear()
    return old


def of_yesterday_after_a_power_cut(board):
    old = of_yesterday(board)
    board.asks.lose_metadata()
    return old


def mixed(board):
    """New targets with an old snapshot."""
    old = dict(board.repo.files)
    version = board.repo.targets.version
    board.repo.publish_targets()
    newest = board.repo.files[f"metadata/{version + 1}.targets.json"]
    return {**old, f"metadata/{version}.targets.json": newest}


def clock(days):
    def move(board):
        board.asks.at += days * DAY.total_seconds()

    return move


def steal_targets_key(board):
    board.stolen = board.repo.rotate("targets")
    board.good, board.repo.signers["targets"] = board.repo.signers["targets"], board.stolen
    board.repo.publish_targets()


def sign_with_the_new_key(board):
    board.repo.signers["targets"] = board.good
    board.repo.publish_targets()


def sign_with_a_strangers_key(board):
    board.good, board.repo.signers["targets"] = board.repo.signers["targets"], [new_signer()]
    board.repo.publish_targets()


def fast_forward(board):
    """A thief of the online key has signed the highest version; then the operator is back."""
    right = board.repo.timestamp.version
    board.repo.timestamp.version = 2**31
    board.repo.publish_timestamp()
    assert isinstance(board.asks.ask("ssd", "2"), Resolved)
    board.repo.timestamp.version = right
    board.repo.publish_timestamp()


ATTACKS = {
    "A01 other bytes": Attack({"E_HASH"}, **fault("targets/", body=bytes(len(CONTENT["2"])))),
    "A01 a stranger's repository": Attack({"E_SIG"}, **serving(of_a_stranger)),
    "A01 a stranger's key": Attack({"E_SIG"}, sign_with_a_strangers_key, sign_with_the_new_key),
    "A02 yesterday's metadata": Attack({"E_ROLLBACK"}, **serving(of_yesterday)),
    "A03 and a power cut": Attack({"E_ROLLBACK"}, **serving(of_yesterday_after_a_power_cut)),
    "A04 below the floor": Attack(
        {"E_ROLLBACK"}, lambda board: None, custom={"release_counter": 14}, is_final=True
    ),
    "A05 frozen": Attack({"E_FREEZE"}, clock(42), clock(-42)),
    "A07 fast clock": Attack({"E_FREEZE"}, clock(20 * 365), clock(-20 * 365)),
    "A08 endless metadata": Attack({"E_SIZE"}, **fault("timestamp", endless=True)),
    "A08 endless bundle": Attack({"E_SIZE"}, **fault("targets/", endless=True)),
    "A09 drip": Attack({"E_SLOW"}, dripping, flowing),
    "A10 mix and match": Attack({"E_HASH", "E_SIZE"}, **serving(mixed)),
    "A11 another board's": Attack(
        {"E_COMPAT"}, lambda board: None, is_final=True,
        custom={"release_counter": 18, "boards": ["jetson-*"]},
    ),
    "A13 fast forward": Attack(
        {"E_ROLLBACK"}, fast_forward,
        lambda board: (board.repo.rotate("timestamp"), board.repo.publish_timestamp()),
    ),
    "A14 replaced key": Attack({"E_SIG"}, steal_targets_key, sign_with_the_new_key),
    "A16 nothing there": Attack({"E_NET"}, **fault(".", status=404)),
    "A16 elsewhere": Attack(
        {"E_NET"}, **fault("timestamp", status=302, headers=(("Location", "http://127.0.0.2/"),))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_reported_with_its_code_and_what_ran_runs_on(board, name, monkeypatch):
    if name.startswith("A13"):  # with new keys, versions may begin anew
        monkeypatch.setattr(update_world, "check_monotone", lambda *_: None)
    attack = ATTACKS[name]
    wanted = board.release("2", **attack.custom)
    attack.begin(board)
    before = board.workers[""].runs
    since = len(board.calls)
    board.order(wanted)
    board.run(lambda: board.report.code is not None, most_s=600)
    report, calls = board.report, board.calls[since:]
    assert report.code in attack.codes, report
    assert report.message
    assert report.phase == ("refused" if attack.is_final else PHASES[calls[-1]])
    for one in board.told:
        assert (one.source, one.model) == ("active", board.workers[""].identity)
    assert board.workers[""].runs == before
    assert wanted.ref.sha256 not in board.disk.stored | board.disk.fetched
    assert set(calls) <= {"metadata", "download", "collect"}
    if name.startswith("A11"):
        assert board.server.asked(f"targets/.*{wanted.ref.sha256}") == 0
    # What is honest again is believed again.
    attack.end(board)
    if attack.is_final:
        board.run()
        wanted = board.release("3", release_counter=18)
        board.order(wanted)
    board.run()
    assert (board.report.phase, board.report.code) == ("committed", None)
    assert board.workers[""].runs == wanted.ref.sha256


def test_a05_how_long_the_repository_has_been_silent_is_said(board):
    board.release("2", release_counter=18)
    clock(42)(board)
    board.order(board.repository["ssd", "2"])
    board.run(lambda: board.report.code is not None, most_s=600)
    assert "(12.0 days ago)" in board.report.message
