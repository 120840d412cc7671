"""What a rollout does next, without a broker: waves, turns, verdicts, limits."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import MqttConfig
from agent.contract.payloads import Accelerator, EngineStatus, ModelIdentity, Status
from agent.contract.payloads import Board as BoardFacts
from agent.contract.updates import Desired, Floors, IgnoredOrder, Reported
from agent.operator.boards import Board, Fleet
from agent.operator.exchange import Message
from agent.operator.fleet_rows import Filter, cells, row_of, summary
from agent.operator.rollout import (
    BoardOrder,
    Rollout,
    in_turn,
    judge,
    plan_boards,
    reason_to_halt,
    undo_of,
    way_back,
)
from agent.operator.rollout_commands import How, Which, Wish, plan
from agent.operator.shares import parse_share, parse_waves, wave_ends
from agent.operator.show import plain_table, printable


def a_report(phase="committed", order="r1", **more):
    fields = {
        "device": "d", "boot_id": "b", "at": 0.0, "engine": "", "deployment_id": order,
        "phase": phase, "code": None, "message": None, "progress": None, "model": None,
        "release_counter": None, "source": "active", "candidate": None, "previous": None,
        "attempts": 0, "bytes_done": None, "bytes_total": None, "p95_ms": None, "rss_mib": None,
        "agreement": None, "clock_trusted": None, "floors": Floors(),
    }  # fmt: skip
    return Reported(**(fields | more))


def a_status(kind="Pi", groups=("g",), **more):
    fields = {
        "device": "d", "boot_id": "b", "agent_version": "1", "started_at": 0.0,
        "board": BoardFacts(model=kind, machine="aarch64", python="3.11", runtime=None),
        "groups": groups, "model": None, "task": None,
        "accelerator": Accelerator(wanted="auto", used="cpu", reason=None),
        "engines": [], "cameras": [], "health": [], "clock_synced": True,
    }  # fmt: skip
    return Status(**(fields | more))


def a_model(name="m", version="1"):
    return ModelIdentity(name=name, version=version, sha256="0" * 64)


def an_order(result="ordered", device="d"):
    return BoardOrder(device=device, wave=0, before="x@1", undo=None, result=result, ordered_at=1.0)


def a_rollout(results, halt_on=0.02):
    return Rollout(
        id="r1", counter=1, action="run", name="m", version="2", engine="", groups=[],
        broker="mqtt://h", prefix="edge", halt_on=halt_on, wait_s=1.0, started_at=0.0,
        boards=[an_order(result, f"d{number}") for number, result in enumerate(results)],
        away=[], skipped={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "count", "ends"),
    [
        ("1,10%,100%", 200, [1, 20, 200]),
        ("1,10%,100%", 1, [1]),
        ("1,10%,100%", 3, [1, 3]),
        ("1,10%,100%", 0, []),
        ("5, 2, 50%", 9, [5]),
        ("5", 200, [5]),
        ("100%", 200, [200]),
        ("0.5%,100%", 1000, [5, 1000]),
    ],
)
def test_waves(text, count, ends):
    assert wave_ends(parse_waves(text), count) == ends


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1,,2", "-1", "1e3", "a", "1;2", "9" * 9])
def test_waves_that_are_none(text):
    with pytest.raises(ValueError, match="such as 1,10%,100%"):
        parse_waves(text)


@given(
    st.lists(st.tuples(st.floats(0.001, 100), st.booleans()), min_size=1), st.integers(0, 20_000)
)
def test_waves_grow_and_never_ask_more_than_there_are(waves, count):
    ends = wave_ends(waves, count)
    assert ends == sorted(set(ends))
    assert all(0 < end <= count for end in ends)


def test_shares():
    assert parse_share("2%") == 0.02
    for text in ("2", "%", "200%", "-1%", "nan%"):
        with pytest.raises(ValueError, match="from 0% to 100%"):
            parse_share(text)


def test_every_kind_of_board_comes_early_and_not_always_the_same_ones():
    boards = [
        Board(f"{kind}-{number}", status=a_status(kind))
        for kind in ("pi4", "pi5", "jetson")
        for number in range(20 if kind == "pi4" else 2)
    ]
    first = in_turn(boards, "r1")
    assert {board.kind for board in first[:3]} == {"pi4", "pi5", "jetson"}
    assert sorted(board.device for board in first) == sorted(board.device for board in boards)
    assert in_turn(reversed(boards), "r1") == first
    assert len({in_turn(boards, f"r{number}")[0].device for number in range(30)}) > 5


@pytest.mark.parametrize(
    ("report", "result"),
    [
        (a_report("committed"), "done"),
        (a_report("refused", code="E_GOLDEN"), "failed"),
        (a_report("rolled_back", code="E_CRASH"), "failed"),
        (a_report("probation"), "ordered"),
        (a_report("committed", "another"), "ordered"),
        (a_report("idle", None), "ordered"),
        (None, "ordered"),
        (
            a_report(
                "committed",
                "another",
                ignored=IgnoredOrder(code="E_REPLAY", message="m", deployment_id="r1", at=0.0),
            ),
            "failed",
        ),
        (
            a_report(
                "committed",
                "r1",
                ignored=IgnoredOrder(code="E_REPLAY", message="m", deployment_id="r1", at=0.0),
            ),
            "done",
        ),
    ],
)
def test_verdicts(report, result):
    order = an_order()
    judge(order, report, "r1", 5.0)
    assert order.result == result
    assert order.took_s == (4.0 if result in ("done", "failed") else None)


def test_a_verdict_is_of_the_last_word():
    order = an_order("silent")
    assert judge(order, a_report("committed"), "r1", 5.0)
    assert not judge(order, a_report("committed"), "r1", 6.0)
    assert judge(order, a_report("rolled_back", code="E_CRASH"), "r1", 7.0)
    assert (order.result, order.code) == ("failed", "E_CRASH")
    planned = an_order("planned")
    assert not judge(planned, a_report("committed"), "r1", 5.0)


@pytest.mark.parametrize(
    ("results", "halts"),
    [
        (["failed"], True),
        (["done"] * 19 + ["failed"] + ["planned"] * 180, True),
        (["done"] * 100 + ["failed"], False),
        (["done"] * 196 + ["failed"] * 4, True),
        (["done"] * 197 + ["failed", "silent", "failed"], False),
        (["done"] * 196 + ["failed", "silent", "silent", "failed"], True),
        (["ordered"] * 3 + ["planned"], False),
        ([], False),
    ],
)
def test_limits(results, halts):
    assert bool(reason_to_halt(a_rollout(results))) == halts


def test_a_limit_of_nothing_and_one_that_is_never_reached():
    assert reason_to_halt(a_rollout(["done"] * 999 + ["failed"], halt_on=0.0))
    assert not reason_to_halt(a_rollout(["done"] * 9, halt_on=0.0))
    assert not reason_to_halt(a_rollout(["failed"] * 9, halt_on=2.0))


def test_what_is_undone():
    board = Board("d")
    assert undo_of(board, "", "r1") is None
    board.reported[""] = a_report("committed", source="factory")
    assert undo_of(board, "", "r1").action == "factory"
    board.reported[""] = a_report(model=a_model())
    board.desired = Desired(deployment_id="x", counter=9, name="m", version="1", pinned=True)
    undo = undo_of(board, "", "r1")
    assert (undo.name, undo.version, undo.pinned) == ("m", "1", True)
    assert undo.deployment_id == "r1-undo"


def test_what_is_on_trial_is_not_undone_to():
    """It may go back in a moment, and would be tried anew."""
    board = Board("d", reported={"": a_report("probation", source="candidate", model=a_model())})
    assert undo_of(board, "", "r1") is None


@pytest.mark.parametrize(
    ("result", "before", "action"),
    [
        ("ordered", "m@1", "rollback"),
        ("silent", "unknown", "rollback"),
        ("failed", "m@1", "run"),
        # It ran it before this rollout; leaving it would take away what nobody asked to leave.
        ("ordered", "m@2", "run"),
    ],
)
def test_how_an_order_is_taken_back(result, before, action):
    undo = Desired(deployment_id="r1-undo", counter=1, name="m", version="1", pinned=True)
    order = BoardOrder(
        device="d", wave=0, before=before, undo=undo, pinned=True, result=result, ordered_at=1.0
    )
    back = way_back(order, a_rollout([]))
    assert (back.action, back.pinned) == (action, True)
    assert back.version == ("2" if action == "rollback" else "1")


def test_a_board_without_a_model_stays_pinned_when_it_is_given_one():
    board = Board("d", reported={"": a_report("idle", None, source="none")})
    board.desired = Desired(deployment_id="x", counter=9, name="m", version="1", pinned=True)
    (planned,) = plan_boards([board], [1], "", "r1")
    assert (planned.undo, planned.pinned) == (None, True)


def test_whose_order_is_newer():
    fleet = Fleet("edge")
    own = {"deployment_id": "own", "counter": 5, "name": "m", "version": "1"}
    group = {"deployment_id": "group", "counter": 6, "name": "m", "version": "1"}
    for topic, what in (
        ("d/status", a_status()),
        ("d/model/desired", Desired(**own)),
        ("group/g/model/desired", Desired(**group)),
        ("group/not-its/model/desired", Desired(**group | {"counter": 9})),
    ):
        fleet.note(Message(f"edge/{topic}", msgspec.json.encode(what), True))
    assert fleet.newer_order("d", "", 4).deployment_id == "group"
    assert fleet.newer_order("d", "", 6) is None
    assert fleet.newer_order("d", "other", 4) is None
    assert fleet.newer_order("nobody", "", 4) is None
    pinned = Desired(**own, pinned=True)
    fleet.note(Message("edge/d/model/desired", msgspec.json.encode(pinned), True))
    assert fleet.newer_order("d", "", 4).deployment_id == "own"


def test_every_model_of_a_board_can_be_asked_for():
    """A board tells of one model at a time: of the one that an order was for last."""
    engines = [
        EngineStatus(
            name=name, cameras=[], model=a_model(name), task=None, head=None, run=None,
            accelerator=Accelerator(wanted="auto", used="cpu", reason=None),
        )
        for name in ("door", "plate")
    ]  # fmt: skip
    fleet = Fleet("edge")
    for tail, what in (
        ("status", a_status(engines=engines)),
        ("model/reported", a_report("committed", engine="plate")),
    ):
        fleet.note(Message(f"edge/d/{tail}", msgspec.json.encode(what), True))
    fleet.note(Message("edge/d/availability", b"online", True))
    how = How(mqtt=MqttConfig())
    for engine, asked in (("door", ["d"]), ("plate", ["d"]), ("face", []), ("", [])):
        wish = Wish(name="m", version="2", engine=engine)
        planned = plan(fleet, how, Which(is_all=True), wish)
        assert [order.device for order in planned.boards] == asked, engine
        assert list(planned.skipped) == ([] if asked else ["d"])


def test_boards_behind_the_last_wave_are_not_asked():
    boards = [Board(f"d{number}") for number in range(10)]
    planned = plan_boards(boards, [1, 4], "", "r1")
    assert [(order.device, order.wave) for order in planned] == [
        ("d0", 0), ("d1", 1), ("d2", 1), ("d3", 1),
    ]  # fmt: skip
    assert plan_boards(boards, [], "", "r1") == []


@given(st.text(max_size=80), st.binary(max_size=200), st.booleans())
def test_whatever_boards_publish_is_noted_or_counted(topic, payload, retained):
    fleet = Fleet("edge")
    for tail in ("availability", "status", "telemetry", "model/reported", "model/desired", topic):
        fleet.note(Message(f"edge/d/{tail}", payload, retained))
    fleet.note(Message(f"edge/group/{topic}/model/desired", payload, retained))
    fleet.note(Message(f"edge/{topic}/status", payload, retained))
    for board in fleet.boards.values():
        assert cells(row_of(board))
        assert Filter().wants(row_of(board))


def test_no_board_writes_on_the_operators_terminal():
    fleet = Fleet("edge")
    evil = "\x1b[2J\x1b]0;owned\x07 [red]x[/red]\r\n"
    report = a_report("refused", code=evil, message=evil)
    fleet.note(Message("edge/d/model/reported", msgspec.json.encode(report), True))
    fleet.note(Message("edge/d/status", msgspec.json.encode(a_status(evil, (evil,))), True))
    shown = plain_table(["a"] * 9, [cells(row_of(fleet.boards["d"]))])
    assert len(shown) == 2
    assert all(line.isprintable() for line in shown)
    assert printable(evil).isprintable()


def test_summaries_and_filters():
    fleet = Fleet("edge")
    for number, state in enumerate((b"online", b"online", b"offline")):
        fleet.note(Message(f"edge/d{number}/availability", state, True))
    fleet.note(
        Message("edge/d0/model/reported", msgspec.json.encode(a_report("downloading")), True)
    )
    fleet.note(
        Message("edge/d1/model/reported", msgspec.json.encode(a_report("rolled_back")), True)
    )
    rows = [row_of(board) for board in fleet.boards.values()]
    assert summary(rows) == "3 boards, 2 online, 1 under way, 1 went back"
    assert [Filter(is_offline=True).wants(row) for row in rows] == [False, False, True]
    assert [Filter(is_wrong=True).wants(row) for row in rows] == [False, True, True]
    fleet.note(Message("edge/d0/model/reported", b"", True))
    assert row_of(fleet.boards["d0"]).reported is None
