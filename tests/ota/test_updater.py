"""Orders from their arrival to their end, on a board that is made up."""

import json
import time

import pytest
from msgspec.structs import replace
from ota.update_world import FACTORY, World, model

from agent.contract.updates import Reported
from agent.ota import rules
from agent.ota.state import State
from agent.ota.steps import Runs
from agent.ota.updater import LOOK_S

PHASES = ["metadata", "downloading", "verify", "selftest", "shadow", "trial", "probation"]


def served(world, engine=""):
    return world.workers[engine].runs


def until(world, phase, **fields):
    world.run(lambda: world.report.phase == phase, **fields)


def phases_of(world):
    seen = [(one.deployment_id, one.phase) for one in world.told if one.deployment_id]
    return [phase for at, (_, phase) in enumerate(seen) if at == 0 or seen[at - 1] != seen[at]]


@pytest.fixture
def world():
    made = World()
    made.run()
    return made


@pytest.fixture
def running(world):
    """Runs version 1."""
    world.deploy(model("1"))
    world.told.clear()
    return world


def test_a_good_model_goes_all_the_way(world):
    assert (world.report.phase, world.report.source) == ("idle", "factory")
    one = model("1", floor=1)
    report = world.deploy(one)
    assert phases_of(world) == [*PHASES, "committed"]
    assert served(world) == one.ref.sha256
    assert (report.source, report.code, report.candidate) == ("active", None, None)
    assert (report.p95_ms, report.rss_mib, report.agreement) == (12.0, 80.0, 0.9)
    assert (report.release_counter, report.clock_trusted) == (1, True)
    assert (report.floors.security_floor, report.floors.release_counter) == (1, 1)
    assert report.floors.targets_version == 1
    assert world.calls[-2:] == ["keep", "collect"]
    assert world.workers[""].starts == [FACTORY]  # swapped, not restarted


@pytest.mark.parametrize(
    ("kind", "phase", "code", "starts"),
    [
        ("bundle", "refused", "E_BUNDLE", 1),
        ("selftest", "refused", "E_GOLDEN", 1),
        ("load", "rolled_back", "E_SELFTEST", 1),
        ("crash", "rolled_back", "E_CRASH", 4),
        ("crash_later", "rolled_back", "E_CRASH", 4),
        ("hang", "rolled_back", "E_HANG", 4),
        ("slow", "rolled_back", "E_BUDGET", 1),
        ("still", "rolled_back", "E_HANG", 1),
        ("back", "rolled_back", "E_FRAME", 1),
    ],
)
def test_a_bad_model_ends_on_the_one_before(running, kind, phase, code, starts):
    before, began = served(running), running.now
    bad = model("2", kind)
    report = running.deploy(bad)
    assert (report.phase, report.code) == (phase, code)
    assert (report.source, served(running)) == ("active", before)
    assert running.now - began < 180
    assert bad.ref.sha256 not in running.disk.stored
    # Of the workers started since, three at most had the candidate (the first by a swap).
    assert len(running.workers[""].starts) == starts
    assert running.workers[""].starts.count(bad.ref.sha256) <= 2
    # The same deployment does not try it again, not under another counter; a new one may.
    running.order(bad, deployment_id=report.deployment_id)
    running.run()
    expected = "E_DENIED" if phase == "rolled_back" else code
    assert running.report.code == expected
    running.order(bad, deployment_id="another")
    running.run()
    assert running.report.code == code


def test_nothing_of_an_order_touches_what_runs_before_its_trial(running):
    running.publish(model("2"))
    running.order(model("2"))
    running.run(lambda: running.report.phase == "trial")
    assert served(running) == model("1").ref.sha256
    assert "swap" not in running.calls[running.calls.index("metadata", 5) :]


def test_a_newer_order_supersedes_up_to_shadow(running):
    for phase in PHASES[:5]:
        running.publish(model("2"), model("3"))
        running.order(model("2"))
        until(running, phase, step_s=0.2)
        newer = running.order(model("3"), action="run")
        running.run(lambda newer=newer: running.report.deployment_id == newer, step_s=0.2)
        assert len(running.open_steps) <= 1
        running.run()
        assert (running.report.deployment_id, running.report.phase) == (newer, "committed")
        running.order(model("1"))
        running.run()


@pytest.mark.parametrize("phase", ["trial", "probation"])
def test_during_a_trial_a_newer_order_waits(running, phase):
    running.publish(model("2"), model("3"))
    first = running.order(model("2"))
    until(running, phase, step_s=0.2)
    newer = running.order(model("3"))
    running.turn(3.0)
    assert running.report.deployment_id == first
    running.run()
    assert [one.phase for one in running.told if one.deployment_id == first][-1] == "committed"
    assert (running.report.deployment_id, running.report.phase) == (newer, "committed")
    assert running.updater.state.engine("").previous == model("2").ref


def test_an_older_order_is_ignored_and_said_to_be(running):
    running.publish(model("2"))
    running.order(model("2"), counter=5)
    running.turn(5.0)
    assert running.report.phase == "committed"
    assert running.report.ignored.code == "E_REPLAY"
    assert running.told[-1].ignored.deployment_id == "d5"


def test_going_back_goes_as_far_as_the_security_floor():
    world = World()
    for number, floor in ((14, 0), (16, 0), (17, 15)):
        assert world.deploy(model(str(number), floor=floor)).phase == "committed"
    assert world.deploy(model("16")).phase == "committed"
    refused = world.deploy(model("14"))
    assert (refused.phase, refused.code) == ("refused", "E_ROLLBACK")
    assert world.calls[-1] == "collect"
    assert served(world) == model("16").ref.sha256
    assert refused.floors.security_floor == 15
    assert refused.floors.release_counter == 17


def test_rollback_goes_one_step_back_without_a_network(running):
    running.deploy(model("2"))
    running.has_network = False
    running.calls.clear()
    running.order(action="rollback")
    running.run()
    assert running.report.phase == "committed"
    assert served(running) == model("1").ref.sha256
    assert running.calls[:2] == ["verify", "swap"]
    # What it has left is not fallen back to; one step further is the factory's.
    assert running.updater.state.engine("").previous is None
    running.order(action="rollback")
    running.run()
    assert (running.report.phase, running.report.source) == ("committed", "factory")
    running.order(action="rollback")
    running.run()
    assert running.report.message == "runs the factory's model already"


def test_rollback_below_the_floor_is_refused(running):
    running.deploy(model("2", floor=2))
    running.order(action="rollback")
    running.run()
    assert (running.report.phase, running.report.code) == ("refused", "E_ROLLBACK")
    assert served(running) == model("2").ref.sha256


def test_rollback_of_a_named_version_leaves_other_boards_alone(running):
    running.publish(model("2"))
    running.order(model("2"), action="rollback")
    running.run()
    assert (running.report.phase, running.report.message) == ("committed", "does not run ssd@2")
    assert served(running) == model("1").ref.sha256


def test_rollback_to_what_was_damaged_is_refused(running):
    running.deploy(model("2"))
    running.disk.damaged.add(model("1").ref.sha256)
    running.order(action="rollback")
    running.run()
    assert (running.report.phase, running.report.code) == ("refused", "E_HASH")
    assert served(running) == model("2").ref.sha256


@pytest.mark.parametrize("phase", ["trial", "probation"])
@pytest.mark.parametrize("action", ["rollback", "factory"])
def test_an_operator_calls_a_candidate_back(running, phase, action):
    running.publish(model("2"))
    first = running.order(model("2"))
    until(running, phase, step_s=0.2)
    second = running.order(action=action)
    began = running.now
    running.run(lambda: running.report.deployment_id == second)
    assert running.now - began < 5
    ended = [one for one in running.told if one.deployment_id == first][-1]
    assert (ended.phase, ended.code) == ("rolled_back", "E_RECALLED")
    running.run()
    assert (running.report.deployment_id, running.report.phase) == (second, "committed")
    expected = FACTORY if action == "factory" else model("1").ref.sha256
    assert served(running) == expected


def test_factory_order(running):
    running.order(action="factory")
    running.run()
    assert (running.report.phase, running.report.source) == ("committed", "factory")
    assert served(running) == FACTORY
    assert running.disk.stored == set()
    assert running.report.floors.release_counter == 1


def test_the_same_version_once_more_is_done_at_once(running):
    running.calls.clear()
    running.order(model("1"))
    running.run()
    assert running.report.phase == "committed"
    assert running.calls == ["metadata", "keep", "collect"]
    # Unless it is damaged, and something else runs: then it is fetched anew.
    running.disk.damaged.add(model("1").ref.sha256)
    running.kill()
    running.run()
    assert running.report.source == "factory"
    running.order(model("1"))
    running.run()
    assert running.report.phase == "committed"
    assert (running.report.source, served(running)) == ("active", model("1").ref.sha256)
    assert running.calls.count("download") == 1


def test_a_known_version_with_other_content_is_a_conflict(running):
    other = model("1", salt="other")
    running.publish(other)
    running.order(other)
    running.run()
    assert (running.report.phase, running.report.code) == ("refused", "E_CONFLICT")


@pytest.mark.parametrize("fields", [{"boards": ("jetson-*",)}, {"min_agent": "1.0"}])
def test_what_is_for_others_is_not_fetched(running, fields):
    running.calls.clear()
    report = running.deploy(model("2", **fields))
    assert (report.phase, report.code) == ("refused", "E_COMPAT")
    assert "download" not in running.calls


def test_stored_bundles_are_not_fetched_again(running):
    running.deploy(model("2"))
    running.calls.clear()
    running.order(model("1"))
    running.run()
    assert running.report.phase == "committed"
    assert "download" not in running.calls
    # One that was damaged meanwhile is.
    running.disk.damaged.add(model("2").ref.sha256)
    running.order(model("2"))
    running.run()
    assert running.report.phase == "committed"
    assert running.calls.count("download") == 1


def test_no_room_is_said_at_once(running):
    running.disk.has_room = False
    report = running.deploy(model("2"))
    assert (report.phase, report.code) == ("refused", "E_SPACE")
    assert served(running) == model("1").ref.sha256


def test_a_network_that_is_away_is_waited_for(running):
    running.has_network = False
    running.publish(model("2"))
    running.order(model("2"))
    for _ in range(3600):
        running.turn()
    assert (running.report.phase, running.report.code) == ("metadata", "E_NET")
    assert running.report.message == "tried again: no route"
    assert 5 <= running.report.attempts <= 12
    running.has_network = True
    running.run()
    assert running.report.phase == "committed"


def test_tries_end_after_days(running):
    running.has_network = False
    running.publish(model("2"))
    running.order(model("2"))
    began = running.now
    running.run(most_s=10 * 86400, step_s=60)
    assert (running.report.phase, running.report.code) == ("refused", "E_NET")
    assert 2 * 86400 < running.now - began < 5 * 86400
    assert running.report.attempts == rules.LIMITS["metadata"].tries


def test_a_download_that_gets_on_is_taken_up_soon(running):
    """The pause grows with failures in a row, not with those that a transfer survived."""
    cuts = iter(range(1, 12))
    running.publish(model("2"))

    def download(wanted, ref, size, floors):
        done = next(cuts)
        step = running.begin("download", lambda: None, polls=3)

        def poll(inner=step.poll):
            from agent.ota.steps import Refused, Succeeded, Working

            reply = inner()
            if isinstance(reply, Working):
                return Working(bytes_done=done * 10 - step.left, bytes_total=100)
            if done < 10:
                return Refused(code="E_NET", message="cut", is_final=False)
            running.disk.fetched.add(ref.sha256)
            return Succeeded()

        step.poll = poll
        return step

    running.download = download
    began = running.now
    running.order(model("2"))
    until(running, "verify")
    assert running.now - began < 10 * 35
    assert running.report.bytes_total == 6_000_000


def test_steps_that_forget_their_limit_are_stopped(running):
    running.publish(model("2"))
    running.selftest = lambda engine, ref: running.begin("selftest", None, polls=10**9)
    running.order(model("2"))
    running.run(step_s=5.0)
    assert (running.report.phase, running.report.code) == ("refused", "E_SLOW")
    assert "tried 2 times: selftest took more than" in running.report.message


def test_a_swap_that_hangs_costs_its_worker(running):
    running.publish(model("2"))
    running.swap = lambda engine, ref: running.begin("swap", None, polls=10**9)
    running.order(model("2"))
    running.run(step_s=1.0)
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_HANG")
    assert "restart" in running.calls
    assert served(running) == model("1").ref.sha256


def test_a_way_back_that_is_refused_costs_the_worker(running):
    from agent.ota.steps import Refused

    running.publish(model("2", "slow"))
    real = running.swap

    def swap(engine, ref):
        if ref == model("1").ref:
            return running.begin("swap", lambda: Refused(code="E_HASH", message="no"))
        return real(engine, ref)

    running.swap = swap
    running.order(model("2"))
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_BUDGET")
    assert running.calls.count("restart") == 1
    assert served(running) == model("1").ref.sha256


def test_processes_that_cannot_be_started_are_started_later(running):
    running.publish(model("2"))
    real, failures = running.selftest, iter([True, False])

    def selftest(engine, ref):
        if next(failures):
            raise OSError(11, "Resource temporarily unavailable")
        return real(engine, ref)

    running.selftest = selftest
    running.order(model("2"))
    running.run()
    assert running.report.phase == "committed"
    assert any(one.code == "E_SYSTEM" for one in running.told)


def test_a_throttled_board_is_not_measured_and_its_probation_lasts(running):
    running.publish(model("2"))
    running.is_throttled = True
    running.order(model("2"))
    for _ in range(600):
        running.turn()
    assert (running.report.phase, running.report.message) == (
        "selftest",
        "waits for the board to cool",
    )
    running.is_throttled = False
    until(running, "probation")
    running.is_throttled = True
    for _ in range(600):
        running.turn()
    assert (running.report.phase, running.report.code) == ("probation", None)
    assert running.report.message == "waits for the board to cool"
    running.is_throttled = False
    running.run()
    assert running.report.phase == "committed"


def test_a_board_that_never_cools_is_measured_all_the_same(running):
    running.publish(model("2"))
    running.is_throttled = True
    running.order(model("2"))
    until(running, "shadow", most_s=3700)


@pytest.mark.parametrize("missing", ["has_camera", "is_connected"])
def test_probation_waits_for_camera_and_broker(running, missing):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    setattr(running, missing, False)
    for _ in range(1000):
        running.turn()
    assert running.report.phase == "probation"
    setattr(running, missing, True)
    running.run()
    assert running.report.phase == "committed"


def test_disabled_updates_are_refused_and_not_forgotten():
    world = World(is_enabled=False)
    world.publish(model("1"))
    world.order(model("1"))
    world.turn(5)
    assert (world.report.phase, world.report.code) == ("refused", "E_DISABLED")
    assert world.report.deployment_id == world.told[-1].deployment_id == "d1000"
    assert world.disk.writes == 0
    assert not {"metadata", "download"} & set(world.calls)
    world.is_enabled = True
    world.kill()
    world.order(model("1"), counter=1000)
    world.run()
    assert world.report.phase == "committed"


def test_without_a_repository_orders_are_carried_out_once_there_is_one(running):
    running.publish(model("2"))
    running.has_repository = False
    running.restart_in_order()
    ordered = running.order(model("2"))
    running.turn(5)
    report = running.report
    assert (report.deployment_id, report.phase, report.code) == (ordered, "refused", "E_DISABLED")
    assert "no repository" in report.message
    # The way back needs none.
    running.order(action="factory")
    running.run(lambda: served(running) == FACTORY and running.report.phase == "committed")
    again = running.order(model("2"))
    running.turn(5)
    assert (running.report.deployment_id, running.report.code) == (again, "E_DISABLED")
    running.has_repository = True
    running.restart_in_order()
    running.order(model("2"), counter=int(again[1:]))  # it is retained
    running.run()
    assert (running.report.deployment_id, running.report.phase) == (again, "committed")


def test_an_update_under_way_pauses_while_updates_are_disabled(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "downloading", step_s=0.2)
    running.is_enabled = False
    running.kill()
    for _ in range(100):
        running.turn()
    assert running.updater.state.deployment.phase == "downloading"
    assert running.report.message == "waits for updates to be enabled in this board's settings"
    running.is_enabled = True
    running.kill()
    running.run()
    assert running.report.phase == "committed"


def test_a_committed_model_that_crashes_often_is_left(running):
    bad = model("2")
    running.deploy(bad)
    worker = running.workers[""]
    for _ in range(4):
        worker.down("E_CRASH", "SIGSEGV")
        running.turn(60)
        running.turn(60)
    assert served(running) == bad.ref.sha256  # four, and not in ten minutes
    for _ in range(5):
        worker.down("E_CRASH", "SIGSEGV")
        running.turn(20)
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_CRASH")
    assert "crashed too often" in running.report.message
    assert served(running) == model("1").ref.sha256
    assert bad.ref.sha256 not in running.disk.stored
    # Once more: the factory's, of which there is nothing further back.
    for _ in range(12):
        worker.down("E_HANG", "stuck")
        running.turn(20)
    running.run()
    assert served(running) == FACTORY
    assert running.report.source == "factory"


def test_crashes_that_no_model_causes_are_not_counted(running):
    for _ in range(20):
        running.workers[""].down("E_CRASH", "camera stuck", is_native=False)
        running.turn(5)
    running.run()
    assert running.report.phase == "committed"
    assert served(running) == model("1").ref.sha256


def test_an_old_worker_that_crashes_is_nothing_to_the_candidate(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "shadow", step_s=0.2)
    running.run(lambda: running.report.phase == "trial", step_s=0.05)
    assert not running.open_steps
    running.workers[""].down("E_CRASH", "SIGSEGV")
    assert running.updater.state.deployment.attempts == 1
    running.run()
    assert running.report.phase == "committed"


def test_a_worker_that_is_replaced_in_order_says_nothing_of_the_candidate(running):
    """As when an accelerator is back, just before a swap."""
    running.publish(model("2"))
    running.order(model("2"))
    running.run(lambda: running.report.phase == "trial", step_s=0.05)
    worker = running.workers[""]
    worker.end()
    worker.start()  # is told to run the candidate, with nobody having said that the old one ended
    running.run()
    assert running.report.phase == "committed"
    assert model("2").ref.sha256 in worker.starts


def test_a_candidate_that_is_damaged_before_a_restart(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    running.disk.damaged.add(model("2").ref.sha256)
    running.kill()
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_HASH")
    assert served(running) == model("1").ref.sha256


def test_restarts_that_are_orderly_take_no_tries(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    for _ in range(6):
        running.restart_in_order()
        until(running, "probation")
    assert running.report.attempts == 1
    running.run()
    assert running.report.phase == "committed"


def test_restarts_without_end_do(running):
    """Not even orderly ones go on for ever, and each start has a model to run."""
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    for _ in range(100):
        running.restart_in_order()
        running.turn(3)
        assert served(running) is not None
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_LOOP")
    assert served(running) == model("1").ref.sha256


def test_power_cuts_during_a_trial_are_counted(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    starts = []
    for _ in range(4):
        running.kill()
        running.turn(3)
        starts.append(served(running) == model("2").ref.sha256)
    assert starts == [True, True, False, False]
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_CRASH")


def test_a_state_that_cannot_be_written_is_not_acted_upon(running):
    running.publish(model("2"))
    running.disk.is_full = True
    running.order(model("2"))
    for _ in range(60):
        running.turn()
    assert running.updater.state.deployment.order.desired.deployment_id == "d1000"
    # It was heard, and whoever gave it is told why nothing comes of it.
    report = running.report
    assert (report.deployment_id, report.phase) == ("d1001", "accepted")
    assert "room for its state" in report.message
    assert (report.source, served(running)) == ("active", model("1").ref.sha256)
    running.disk.is_full = False
    running.run()
    assert (running.report.deployment_id, running.report.phase) == ("d1001", "committed")


@pytest.mark.parametrize("phase", PHASES)
def test_a_disk_that_runs_full_delays_and_breaks_nothing(running, phase):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, phase, step_s=0.2)
    running.disk.is_full = True
    for _ in range(200):
        running.turn()
    assert running.report.phase in (*PHASES, "refused")
    assert served(running) is not None
    running.disk.is_full = False
    running.run()
    assert running.report.phase == "committed"
    assert served(running) == model("2").ref.sha256


def test_a_commit_waits_for_room_and_the_candidate_serves_meanwhile(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    running.disk.is_full = True
    for _ in range(300):
        running.turn()
    assert running.report.phase == "probation"
    assert "room for its state" in running.report.message
    assert served(running) == model("2").ref.sha256
    running.kill()  # this start cannot be counted: the model before runs meanwhile
    for _ in range(60):
        running.turn()
    assert served(running) == model("1").ref.sha256
    running.disk.is_full = False
    running.run()
    assert running.report.phase == "committed"
    assert served(running) == model("2").ref.sha256


def test_a_crash_that_cannot_be_counted_has_the_model_before_run(running):
    running.publish(model("2", "crash_later"))
    running.order(model("2"))
    until(running, "probation")
    running.disk.is_full = True
    running.run(lambda: served(running) == model("1").ref.sha256)
    for _ in range(100):
        running.turn()
        assert served(running) == model("1").ref.sha256
    running.disk.is_full = False
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_CRASH")


def test_a_way_back_is_gone_on_a_full_disk(running):
    running.publish(model("2", "slow"))
    running.order(model("2"))
    until(running, "probation")
    running.disk.is_full = True
    running.run(lambda: served(running) == model("1").ref.sha256, most_s=100)
    assert running.report.phase == "rolled_back"
    running.disk.is_full = False
    running.run()
    assert running.report.phase == "rolled_back"
    assert running.disk.state.deployment.code == "E_BUDGET"


def test_each_engine_has_its_own_and_one_is_updated_at_a_time():
    world = World(engines=("", "door"))
    first, second = model("1"), model("1", name="door-net")
    world.publish(first, second)
    world.order(first)
    world.order(second, engine="door")
    world.run()
    assert served(world) == first.ref.sha256
    assert served(world, "door") == second.ref.sha256
    assert (world.report.engine, world.report.phase) == ("door", "committed")
    order = [call for call in world.calls if call in ("metadata", "swap")]
    assert order == ["metadata", "swap", "metadata", "swap"]
    # What one of them is rolled back to is nothing to the other.
    world.order(action="rollback", engine="door")
    world.run()
    assert served(world) == first.ref.sha256
    assert served(world, "door") == FACTORY


def test_an_engine_that_is_gone_from_the_settings_blocks_nothing():
    world = World(engines=("", "door"))
    world.publish(model("1"), model("2", name="door-net"))
    world.order(model("2", name="door-net"), engine="door")
    until(world, "probation")
    world.engines = ("",)
    world.kill()
    world.order(model("1"))
    world.run()
    assert (world.report.phase, served(world)) == ("committed", model("1").ref.sha256)


def test_other_engines_orders_are_ignored(running):
    running.order(model("1"), engine="garage")
    running.turn(5)
    assert running.report.ignored.code == "E_ENGINE"
    assert running.report.phase == "committed"


def test_a_worker_without_any_model_is_healed():
    world = World()
    world.run()
    event = Runs(engine="", bundle=None, source="none", model=None)
    world.updater.on_engine_event(event)
    assert (world.report.source, world.report.model) == ("none", None)
    report = world.deploy(model("1"))
    assert (report.phase, report.source) == ("committed", "active")


def test_news_is_told_once_and_progress_now_and_then(running):
    running.publish(model("2"))
    running.order(model("2"))
    running.run()
    details = [one for one in running.told if one.phase == "probation"]
    assert 25 <= len(details) <= 35  # of 60 s, one in 2 s
    told = len(running.told)
    for _ in range(500):
        running.turn()
    assert len(running.told) == told


def test_reported_is_the_contracts_json(running):
    import msgspec

    from agent.contract.payloads import encode

    document = encode(running.report)
    assert msgspec.json.decode(document, type=Reported) == running.report
    assert json.loads(document)["schema"] == "edge-agent/reported/1"


def test_a_flood_costs_little_and_changes_nothing(running):
    """1000 messages a second for a minute; what is legitimate still arrives (A22)."""
    running.publish(model("2"))
    junk = [
        b"x" * 200,
        json.dumps({"deployment_id": "old", "counter": 3, "name": "ssd", "version": "1"}).encode(),
        b"{" * 4000,
        b'{"deployment_id":"n","counter":99999999,"engine":"nope","name":"ssd","version":"1"}',
    ]
    before, told = running.disk.writes, len(running.told)
    began = time.process_time()
    for second in range(60):
        for number in range(1000):
            running.updater.on_desired(junk[number % 4], "device" if number % 3 else "group")
        for _ in range(50):  # the main loop turns with each result
            running.turn(0.02)
        assert running.report.phase == "committed", second
    cpu_s = time.process_time() - began
    assert cpu_s < 6.0  # of 60 s; here about 1
    assert running.disk.writes == before
    assert len(running.told) - told <= 31
    running.order(model("2"))
    running.run()
    assert running.report.phase == "committed"


def test_a_flood_of_good_orders_is_taken_up_slowly(running):
    running.publish(*(model(str(number)) for number in range(100, 104)))
    writes = running.disk.writes
    for second in range(30):
        for number in range(1000):
            counter = 10_000 + second * 1000 + number
            running.order(model(str(100 + number % 4)), counter=counter, scope="group")
        for _ in range(10):
            running.turn(0.1)
            assert len(running.open_steps) <= 1
    assert running.disk.writes - writes < 150
    running.run()
    assert running.report.deployment_id == "d39999"
    assert running.report.phase == "committed"


def test_an_idle_board_writes_nothing_and_looks_seldom():
    world = World()
    world.run()
    writes = world.disk.writes
    assert world.updater.check(world.now + 1) == LOOK_S
    for _ in range(1000):
        world.turn()
    assert world.disk.writes == writes == 0


def test_a_state_from_elsewhere_is_followed():
    """Such as one whose files were lost: the floors hold, and the factory's model runs."""
    world = World()
    world.deploy(model("17", floor=15))
    world.disk.state = State(
        floors=world.disk.state.floors,
        releases=world.disk.state.releases,
        counters=world.disk.state.counters,
    )
    world.kill()
    world.run()
    assert world.report.source == "factory"
    refused = world.deploy(model("14"))
    assert refused.code == "E_ROLLBACK"
    world.order(model("17"), counter=1000)  # retained, but older than the one that was refused
    world.turn(5)
    assert world.report.ignored.code == "E_REPLAY"
    assert replace(world.deploy(model("18")), at=0).phase == "committed"
