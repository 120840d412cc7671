"""Rollouts over a real broker, against boards that play the update by rule."""

from __future__ import annotations

import itertools
import json
import signal
import time

import pytest
from fleet_rig import HELD, bad_ones_last, eventually

from agent.contract.updates import Desired

KILLS = 2


def test_a_good_model_reaches_every_board_wave_by_wave(rig):
    boards = rig(20)
    said = boards.rollout("door@2.0", "--groups", "porches")
    assert said["state"] == "finished"
    assert boards.versions() == {"2.0": 20}
    waves = [[one for one in said["boards"] if one["wave"] == wave] for wave in range(3)]
    assert [len(wave) for wave in waves] == [1, 1, 18]
    for earlier, later in itertools.pairwise(waves):
        assert max(one["ordered_at"] + one["took_s"] for one in earlier) <= min(
            one["ordered_at"] for one in later
        )
    # Who joins the group later gets it as well, and who has it takes no notice.
    assert boards.retained("edge/group/porches/model/desired")["version"] == "2.0"
    assert all(board.brain.taken_up == 1 for board in boards.fleet.boards)
    assert said["messages_sent"] == 21


@pytest.mark.parametrize(
    ("version", "code"), [("2.0-golden", "E_GOLDEN"), ("2.0-crash", "E_CRASH")]
)
def test_a_bad_model_ends_with_the_first_board(rig, version, code):
    boards = rig(20)
    done = boards.fleet_command("rollout", f"door@{version}", "--all", code=1)
    assert f"halted: 1 of 1 boards asked went wrong ({code}); the limit is 2 %" in done.stderr
    assert code in done.stdout
    eventually(lambda: boards.versions() == {"1.0.0": 20})
    assert boards.asked() == 1
    said = json.loads(boards.rollout_file().read_text())
    canary = next(one["device"] for one in said["boards"] if one["result"] == "failed")
    # Its own order is taken back, so that a board with a new disk would not get it again.
    assert boards.retained(f"edge/{canary}/model/desired")["version"] == "1.0.0"
    assert boards.retained("edge/group/porches/model/desired") is None


def test_a_model_that_is_bad_on_some_boards_is_halted_at_the_limit(rig):
    """30 % of the boards refuse it, and less than 10 % may; they take longer than the others."""
    boards = rig(40, make_brain=bad_ones_last("2.0-golden30"))
    limits = ("--halt-on", "10%", "--waves", "25%,100%", "--pace", "10")
    said = boards.rollout("door@2.0-golden30", "--all", *limits, code=1)
    assert said["state"] == "halted"
    results = [one["result"] for one in said["boards"]]
    assert boards.asked() < 40
    assert results.count("failed") / (len(results) - results.count("planned")) >= 0.1
    # Those that run it keep it, until they are told otherwise.
    kept = boards.versions().get("2.0-golden30", 0)
    assert kept >= results.count("done") > 0
    boards.as_json("rollback", "--rollout", said["id"])
    assert boards.versions() == {"1.0.0": 40}


def test_a_board_that_left_the_model_is_not_brought_back_to_it(rig):
    """One step back from what it went back to would be the very model that is to be left."""
    boards = rig(4)
    said = boards.rollout("door@2.0", "--all")
    gone = boards.fleet.boards[1]
    back = Desired(
        deployment_id="back", counter=said["counter"] + 1, name="door", version="1.0.0"
    )  # as a halt takes orders back that it has not heard of again
    boards.order(f"edge/{gone.device}/model/desired", back)
    eventually(lambda: gone.brain.runs == ("door", "1.0.0"))
    said = boards.as_json("rollback", "--rollout", said["id"])
    assert (said["name"], said["version"]) == ("door", "2.0")
    assert boards.versions() == {"1.0.0": 4}
    assert {one["result"] for one in said["boards"]} == {"done"}


def test_boards_that_say_nothing_count_as_bad(rig):
    boards = rig(10)
    said = boards.rollout("door@2.0-hang", "--all", "--wait", "1", code=1)
    assert [one["result"] for one in said["boards"]].count("silent") == 1
    assert "(silent)" in said["why"]


def test_a_board_that_dies_with_the_model_counts_as_bad(rig):
    boards = rig(5, phase_s=HELD)
    running = boards.start("rollout", "door@2.0", "--all", "--wait", "1.5", "--json")
    eventually(boards.asked)
    (canary,) = [board.device for board in boards.fleet.boards if board.brain.taken_up]
    boards.fleet.ask("go", canary)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert [one["device"] for one in json.loads(out)["boards"] if one["result"] == "silent"] == [
        canary
    ]


def test_boards_that_are_away_are_asked_last_and_not_waited_for(rig):
    boards = rig(10)
    away = boards.fleet.boards[3].device
    boards.fleet.ask("go", away)
    eventually(lambda: len(boards.as_json("list", "--offline", "--wait", "0", state=False)) == 1)
    said = boards.rollout("door@2.0", "--groups", "porches")
    assert said["away"] == [away]
    assert len(said["boards"]) == 9
    assert boards.fleet.brain(away).runs == ("door", "1.0.0")
    boards.fleet.ask("come", away)
    eventually(lambda: boards.versions() == {"2.0": 10})


def test_after_a_kill_it_goes_on_where_it_was(rig):
    boards = rig(16, phase_s=0.1)
    running = boards.start("rollout", "door@2.0", "--all", "--waves", "50%,100%", "--pace", "2")
    eventually(lambda: boards.asked() >= 4)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    written = json.loads(boards.rollout_file().read_text())
    assert written["state"] == "running"
    eventually(lambda: boards.versions().get("2.0", 0) == boards.asked())  # boards go on alone
    assert 0 < boards.asked() < 16
    said = boards.as_json("rollout", "--resume")
    assert (said["id"], said["state"]) == (written["id"], "finished")
    assert boards.versions() == {"2.0": 16}
    assert all(board.brain.taken_up == 1 for board in boards.fleet.boards)
    done = boards.fleet_command("rollout", "--resume", code=69)
    assert "was interrupted" in done.stderr


def test_killed_again_and_again_it_ends_all_the_same(rig):
    boards = rig(16, phase_s=0.05)
    running = boards.start("rollout", "door@2.0", "--all", "--pace", "4")
    for number in range(KILLS):
        asked = boards.asked()
        eventually(lambda asked=asked: boards.asked() > asked)
        time.sleep(0.15 * number)  # somewhere else each time
        assert running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
        running = boards.start(
            "rollout", "--resume", "--pace", "20" if number == KILLS - 1 else "4"
        )
    _, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    assert boards.versions() == {"2.0": 16}
    assert all(board.brain.taken_up == 1 for board in boards.fleet.boards)
    assert json.loads(boards.rollout_file().read_text())["state"] == "finished"


def test_a_halt_that_was_cut_short_is_completed(rig):
    boards = rig(10)
    boards.rollout("door@2.0-crash", "--all", code=1)
    file = boards.rollout_file()
    said = json.loads(file.read_text())
    (canary,) = [one["device"] for one in said["boards"] if one["result"] == "failed"]
    boards.order(f"edge/{canary}/model/desired", None)
    file.write_text(json.dumps(said | {"state": "halting"}))  # as if killed before it took back
    boards.as_json("rollout", "--resume", code=1)
    assert json.loads(file.read_text())["state"] == "halted"
    assert boards.retained(f"edge/{canary}/model/desired")["version"] == "1.0.0"
    assert boards.asked() == 1


def test_ctrl_c_says_how_to_go_on(rig):
    boards = rig(10, phase_s=HELD)
    running = boards.start("rollout", "door@2.0", "--all")
    eventually(boards.asked)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "go on with the rest by edge-agent fleet rollout --resume run-" in err


def test_where_all_run_it_only_who_joins_later_is_asked(rig):
    boards = rig(3)
    boards.rollout("door@2.0", "--all")
    said = boards.rollout("door@2.0", "--groups", "porches")
    assert (said["state"], said["boards"], said["messages_sent"]) == ("finished", [], 1)
    assert boards.retained("edge/group/porches/model/desired")["version"] == "2.0"
    done = boards.fleet_command("rollout", "door@2.0", "--groups", "porches")
    assert done.stderr == "door@2.0: 3 boards run it already\n"
    assert boards.versions() == {"2.0": 3}


def test_it_survives_a_broker_that_forgets_everything(rig, broker):
    boards = rig(8, phase_s=0.15)
    running = boards.start(
        "rollout", "door@2.0", "--all", "--waves", "50%,100%", "--pace", "8", "--json"
    )
    eventually(lambda: boards.asked() >= 3)
    broker.stop()
    eventually(lambda: not boards.fleet.boards[0].client.is_connected())
    broker.start()
    out, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    assert boards.versions() == {"2.0": 8}
    assert json.loads(out)["away"] == []


def test_a_rollout_of_some_boards_goes_no_further(rig):
    boards = rig(10)
    said = boards.rollout("door@2.0", "--groups", "porches", "--waves", "3")
    assert (len(said["boards"]), said["left"]) == (3, 7)
    assert boards.versions() == {"2.0": 3, "1.0.0": 7}
    assert boards.retained("edge/group/porches/model/desired") is None
    again = boards.rollout("door@2.0", "--groups", "porches")
    assert sorted(again["skipped"].values()) == ["runs it already"] * 3
    assert boards.versions() == {"2.0": 10}


def test_pinned_boards_stay(rig):
    boards = rig(6)
    done = boards.fleet_command("pin", "board-002", state=False)
    assert done.stdout == "board-002: pinned, door@1.0.0\n"
    eventually(lambda: boards.fleet.brain("board-002").pinned)
    said = boards.rollout("door@2.0", "--groups", "porches")
    assert said["skipped"] == {"board-002": "is pinned; name it by --devices, or unpin it"}
    assert boards.versions() == {"2.0": 5, "1.0.0": 1}
    boards.rollout("door@2.0", "--devices", "board-002")
    assert boards.fleet.brain("board-002").pinned  # until `unpin`
    boards.rollout("door@1.5", "--groups", "porches")
    assert boards.versions() == {"1.5": 5, "2.0": 1}
    boards.fleet_command("unpin", "board-002", state=False)
    eventually(lambda: not boards.fleet.brain("board-002").pinned)
    boards.rollout("door@1.5", "--groups", "porches")
    assert boards.versions() == {"1.5": 6}
    boards.fleet_command("pin", "board-001", "--model", "door@2.0", state=False)
    eventually(lambda: boards.fleet.brain("board-001").runs == ("door", "2.0"))


def test_rollback_takes_every_board_back_and_the_group_with_it(rig):
    boards = rig(10)
    boards.rollout("door@2.0", "--groups", "porches")
    said = boards.as_json("rollback", "--groups", "porches")
    assert said["state"] == "finished"
    assert boards.versions() == {"1.0.0": 10}
    assert boards.retained("edge/group/porches/model/desired") is None


def test_a_second_operator_is_not_overruled(rig):
    """An order with a higher counter stands, and ours counts as gone wrong there."""
    boards = rig(4, phase_s=HELD)
    running = boards.start("rollout", "door@2.0", "--devices", "board-000,board-001", "--waves",
                           "1,2", "--json")  # fmt: skip
    eventually(boards.asked)
    (later,) = [
        name for name in ("board-000", "board-001") if not boards.fleet.brain(name).taken_up
    ]
    order = Desired(deployment_id="other", counter=2**50, name="door", version="9.0")
    boards.order(f"edge/{later}/model/desired", order)
    boards.let_go()
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    by_name = {one["device"]: one for one in json.loads(out)["boards"]}
    assert by_name[later]["code"] == "E_REPLAY"
    eventually(lambda: boards.fleet.brain(later).runs == ("door", "9.0"))


def test_dry_runs_ask_nobody(rig):
    boards = rig(6)
    shown = boards.fleet_command("rollout", "door@2.0", "--all", "--dry-run")
    assert "Raspberry Pi 5" in shown.stdout
    said = boards.as_json("rollout", "door@2.0", "--all", "--dry-run")
    assert len(said["boards"]) == 6
    boards.as_json("rollback", "--all", "--dry-run")
    boards.fleet_command("pin", "board-000", "--dry-run", state=False)
    assert not boards.state.exists()
    assert boards.asked() == 0
    assert boards.retained("edge/board-000/model/desired") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout", "door@2.0", "--devices", "nobody"], "no board nobody ever said a word"),
        (["rollout", "door@2.0", "--groups", "nobody"], "no board below edge/ is in nobody"),
        (["rollback", "--rollout", "run-1"], "has no rollout run-1"),
        (["rollout", "--resume", "run-1"], "has no rollout run-1"),
        (["rollout", "--resume"], "was interrupted"),
    ],
)
def test_what_cannot_be_done_is_said(rig, arguments, says):
    done = rig(2).fleet_command(*arguments, code=69)
    assert says in done.stderr
