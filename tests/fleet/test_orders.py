"""Orders that meet other orders: after a halt, of two operators, for boards that come and go."""

from __future__ import annotations

import json
import signal

import pytest
from fleet_rig import HELD, bad_ones_last, eventually
from updater_brain import UpdaterBrain

from agent.contract.updates import Desired
from agent.operator import changes


def an_order(name, counter, version="9.0", **more):
    return Desired(deployment_id=name, counter=counter, name="door", version=version, **more)


def offline(boards):
    return {
        row["device"] for row in boards.as_json("list", "--offline", "--wait", "0", state=False)
    }


def test_a_halt_ends_the_trials_that_are_under_way(rig):
    """An order to run what ran before would wait until the bad model has passed its probation."""
    boards = rig(6, make_brain=lambda device: UpdaterBrain(device, 10.0))
    boards.rollout("door@2.0", "--all", "--waves", "100%")
    said = boards.rollout("door@2.1-crash20", "--all", "--waves", "100%", code=1)
    assert [one["result"] for one in said["boards"]].count("ordered") >= 4
    eventually(lambda: boards.versions() == {"2.0": 6})
    for board in boards.fleet.boards:
        assert board.brain.newest_committed == 200


def test_what_is_on_trial_is_nothing_to_pin_a_board_to(rig):
    """It may go back in a moment, and would be tried once more."""
    boards = rig(1, make_brain=lambda device: UpdaterBrain(device, 4.0))
    boards.order("edge/board-000/model/desired", an_order("x", 1, "2.1"))
    eventually(lambda: boards.retained("edge/board-000/model/reported")["phase"] == "probation")
    done = boards.fleet_command("pin", "board-000", state=False, code=69)
    assert "board-000 is trying door@2.1; name a model" in done.stderr


def test_an_order_of_somebody_else_outlives_a_halt(rig):
    """What is taken back is ours alone."""
    boards = rig(2, phase_s=HELD)
    running = boards.start(
        "rollout", "door@2.0", "--devices", "board-000,board-001", "--waves", "2", "--json"
    )
    eventually(lambda: boards.asked() == 2)
    counter = boards.fleet.brain("board-000").order.counter + 1
    boards.order("edge/board-000/model/desired", an_order("other", counter))
    out, _ = running.communicate(timeout=60)
    assert json.loads(out)["state"] == "halted"
    boards.let_go()
    eventually(lambda: boards.fleet.brain("board-000").runs == ("door", "9.0"))
    assert boards.retained("edge/board-000/model/desired")["deployment_id"] == "other"
    assert boards.retained("edge/board-001/model/desired")["deployment_id"] != "other"


def test_a_newer_order_for_a_board_that_is_away_stands(rig):
    """A rollout takes its time; what others ask for meanwhile is not replaced by what is older."""
    boards = rig(3, phase_s=HELD)
    boards.fleet.ask("go", "board-001")
    eventually(lambda: offline(boards) == {"board-001"})
    running = boards.start("rollout", "door@2.0", "--groups", "porches", "--json")
    eventually(boards.asked)
    boards.order("edge/board-001/model/desired", an_order("other", 2**50))
    boards.let_go()
    running.communicate(timeout=60)
    assert running.returncode == 0
    assert boards.retained("edge/board-001/model/desired")["deployment_id"] == "other"


def test_a_newer_order_for_the_group_ends_a_rollout_at_once(rig):
    """Boards go by it and say nothing more of ours: nobody has to wait for them."""
    boards = rig(3, phase_s=HELD)
    running = boards.start("rollout", "door@2.0", "--groups", "porches", "--json")
    eventually(boards.asked)
    boards.order("edge/group/porches/model/desired", an_order("other", 2**50))
    out, _ = running.communicate(timeout=60)
    assert "1 of 1 boards asked went wrong (E_REPLAY)" in json.loads(out)["why"]
    boards.let_go()
    eventually(lambda: boards.versions() == {"9.0": 3})
    assert boards.retained("edge/group/porches/model/desired")["deployment_id"] == "other"


def test_a_board_that_was_pinned_meanwhile_stays_pinned(rig):
    boards = rig(2, phase_s=HELD)
    running = boards.start("rollout", "door@2.0", "--all", "--waves", "1,2", "--json")
    eventually(boards.asked)
    (later,) = [board for board in boards.fleet.boards if not board.brain.taken_up]
    boards.fleet_command("pin", later.device, state=False)
    eventually(lambda: later.brain.pinned)
    boards.let_go()
    out, _ = running.communicate(timeout=60)
    by_name = {one["device"]: one for one in json.loads(out)["boards"]}
    assert (by_name[later.device]["result"], by_name[later.device]["code"]) == (
        "failed",
        "E_REPLAY",
    )
    assert boards.retained(f"edge/{later.device}/model/desired")["pinned"]


def test_a_rollout_of_some_boards_leaves_those_that_are_away_alone(rig):
    boards = rig(4)
    boards.fleet.ask("go", "board-001")
    eventually(lambda: offline(boards) == {"board-001"})
    said = boards.rollout("door@2.0", "--groups", "porches", "--waves", "1")
    assert (len(said["boards"]), said["left"], said["away"]) == (1, 3, [])
    assert boards.retained("edge/board-001/model/desired") is None


def test_a_halted_rollout_and_its_rollback_leave_the_groups_order(rig):
    boards = rig(6, make_brain=bad_ones_last("2.0-crash20"))
    boards.rollout("door@1.5", "--groups", "porches")
    limits = ("--waves", "100%", "--halt-on", "10%")
    said = boards.rollout("door@2.0-crash20", "--groups", "porches", *limits, code=1)
    boards.fleet_command("rollback", "--rollout", said["id"])
    assert boards.versions() == {"1.5": 6}
    assert boards.retained("edge/group/porches/model/desired")["version"] == "1.5"


def test_boards_that_were_silent_or_joined_later_leave_a_model_as_well(rig):
    boards = rig(6)
    boards.fleet.ask("go", "board-005")
    eventually(lambda: offline(boards) == {"board-005"})
    for name in ("board-003", "board-004"):  # as if they died as they were asked
        boards.fleet.brain(name).phase_s = HELD
    devices = ",".join(f"board-{number:03}" for number in range(5))
    waits = ("--wait", "3", "--waves", "100%", "--halt-on", "60%")
    said = boards.rollout("door@2.0", "--devices", devices, *waits)
    assert [one["result"] for one in said["boards"]].count("silent") == 2
    order = Desired(**boards.retained("edge/board-000/model/desired"))
    for name in ("board-003", "board-004"):
        boards.fleet.ask("hurry", name)
    boards.fleet.ask("come", "board-005")
    boards.order("edge/group/porches/model/desired", order)
    eventually(lambda: boards.versions() == {"2.0": 6})
    eventually(lambda: not offline(boards))
    said = boards.as_json("rollback", "--rollout", said["id"])
    assert len(said["boards"]) == 6
    assert boards.versions() == {"1.0.0": 6}


def test_a_rollback_ends_the_rollout_that_was_interrupted(rig, monkeypatch):
    monkeypatch.setattr(changes, "WAITS_FOR_OTHERS_S", 0.2)
    boards = rig(8, phase_s=HELD)
    running = boards.start("rollout", "door@2.0", "--all", "--waves", "25%,100%")
    eventually(lambda: boards.asked() == 2)
    done = boards.fleet_command("rollback", "--rollout", boards.rollout_file().parent.name, code=69)
    assert "another command is at work there" in done.stderr
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    written = json.loads(boards.rollout_file().read_text())
    for board in boards.fleet.boards:
        board.brain.phase_s = 0.02
    said = boards.as_json("rollback", "--rollout", written["id"])
    assert len(said["boards"]) == 2
    assert boards.versions() == {"1.0.0": 8}
    done = boards.fleet_command("rollout", "--resume", code=69)
    assert "was interrupted" in done.stderr


def test_boards_that_are_all_away_can_be_called_back(rig):
    boards = rig(1)
    said = boards.rollout("door@2.0", "--all")
    boards.fleet.ask("go", "board-000")
    eventually(lambda: offline(boards) == {"board-000"})
    done = boards.fleet_command("rollback", "--rollout", said["id"])
    assert "rollback from door@2.0: 1 board is offline, and asked on coming back" in done.stderr
    boards.fleet.ask("come", "board-000")
    eventually(lambda: boards.versions() == {"1.0.0": 1})


def test_where_all_others_run_it_those_that_are_away_are_asked(rig):
    boards = rig(2)
    boards.rollout("door@2.0", "--devices", "board-000")
    boards.fleet.ask("go", "board-001")
    eventually(lambda: offline(boards) == {"board-001"})
    said = boards.rollout("door@2.0", "--groups", "porches")
    assert said["away"] == ["board-001"]
    boards.fleet.ask("come", "board-001")
    eventually(lambda: boards.versions() == {"2.0": 2})


def test_boards_that_were_asked_for_something_else_since_keep_it(rig):
    """Also if they are away and it lies there for them still."""
    boards = rig(2)
    before = boards.rollout("door@2.0", "--all")
    boards.rollout("door@3.0", "--devices", "board-000")
    said = boards.as_json("rollback", "--rollout", before["id"])
    assert [one["device"] for one in said["boards"]] == ["board-001"]
    assert boards.versions() == {"3.0": 1, "1.0.0": 1}
    assert boards.retained("edge/board-000/model/desired")["version"] == "3.0"
    done = boards.fleet_command("rollback", "--rollout", before["id"], code=69)
    assert "no board runs it for all that is known" in done.stderr


def test_a_board_that_is_gone_for_good_holds_up_no_rollback(rig):
    boards = rig(2)
    said = boards.rollout("door@2.0", "--all")
    boards.fleet.ask("go", "board-000")
    eventually(lambda: offline(boards) == {"board-000"})
    for tail in ("availability", "status", "model/reported", "model/desired"):
        boards.order(f"edge/board-000/{tail}", None)
    done = boards.fleet_command("rollback", "--rollout", said["id"])
    assert "not asked: board-000: never reported on a model" in done.stderr
    assert boards.fleet.brain("board-001").runs == ("door", "1.0.0")


def test_a_rollout_of_another_place_is_not_taken_back_here(rig):
    boards = rig(1)
    said = boards.rollout("door@2.0", "--all")
    file = boards.rollout_file()
    file.write_text(json.dumps(said | {"prefix": "elsewhere"}))
    done = boards.fleet_command("rollback", "--rollout", said["id"], code=1)
    assert "was begun at" in done.stderr
    assert boards.versions() == {"2.0": 1}


def test_a_rollback_of_a_rollback_is_refused(rig):
    """One more step back would be the factory's model, and nobody means that."""
    boards = rig(1)
    boards.rollout("door@2.0", "--all")
    said = boards.as_json("rollback", "--all")
    done = boards.fleet_command("rollback", "--rollout", said["id"], code=1)
    assert "is a rollback itself" in done.stderr
    assert boards.versions() == {"1.0.0": 1}


def test_a_rollback_that_boards_refuse_is_no_success(rig):
    boards = rig(1)
    boards.rollout("door@2.0", "--all")
    boards.fleet.brain("board-000").rule = lambda *_: ("accepted", "refused", "E_ROLLBACK")
    done = boards.fleet_command("rollback", "--all", code=1)
    assert "E_ROLLBACK" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["rollback", "--rollout", "run-1", "--devices", "board-000"],
            "--rollout names the boards",
        ),
        (["rollback", "--rollout", "run-1", "--all"], "--rollout names the boards"),
        (["rollout", "door@3.0", "--all", "--resume"], "--resume goes on with what was begun"),
    ],
)
def test_what_contradicts_itself_is_not_guessed(rig, arguments, says):
    """A rollback of one board is none of all the boards of a rollout."""
    assert says in rig(1).fleet_command(*arguments, code=2).stderr
