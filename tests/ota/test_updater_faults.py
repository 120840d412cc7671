"""What goes wrong around an update: models that fail late, disks, clocks, restarts."""

import pytest
from ota.update_world import World, model


def served(world, engine=""):
    return world.workers[engine].runs


def until(world, phase, **fields):
    world.run(lambda: world.report.phase == phase, **fields)


@pytest.fixture
def running():
    """Runs version 1."""
    world = World()
    world.deploy(model("1"))
    world.told.clear()
    return world


@pytest.mark.parametrize(
    ("kind", "after_s", "probation_s", "most_s"),
    [
        ("crash_later", 0.5, 60, 60),
        ("crash_later", 540, 600, 3 * 540 + 60),
        ("leak", 200, 600, 3 * 200 + 60),
        ("still", 0, 600, 60),
        ("slow", 0, 600, 60),
        ("hang", 0, 600, 90),
        ("back", 0, 600, 30),
    ],
)
def test_a_model_that_fails_only_when_it_serves(kind, after_s, probation_s, most_s):
    """Good in its self-test, and then it sleeps, leaks, crashes or is too slow (A20, F24)."""
    world = World(probation_s=probation_s)
    before = world.deploy(model("1"))
    bad = model("2", kind, after_s=after_s)
    world.publish(bad)
    world.order(bad)
    until(world, "trial", step_s=0.2)
    began = world.now
    world.run(lambda: served(world) == model("1").ref.sha256 and not world.open_steps)
    assert world.now - began <= most_s
    world.run()
    assert (world.report.phase, world.report.source) == ("rolled_back", "active")
    assert world.report.model == before.model
    assert max(world.deaths.values(), default=0) <= 3


def test_a_clock_that_nothing_vouches_for_is_waited_for_and_said(running):
    running.has_clock = False
    running.publish(model("2"))
    running.order(model("2"))
    for _ in range(700):
        running.turn()
    report = running.report
    assert (report.phase, report.code, report.clock_trusted) == ("metadata", "E_CLOCK", False)
    assert served(running) == model("1").ref.sha256
    running.has_clock = True
    running.run()
    assert (running.report.phase, running.report.clock_trusted) == ("committed", True)


def test_a_wall_clock_that_jumps_changes_no_time(running):
    running.publish(model("2"))
    running.order(model("2"))
    began = running.now
    while running.report.phase != "committed":
        running.wall += 3.2e8 if running.wall < 1.8e9 else -3.2e8
        running.turn()
        assert running.now - began < 120
    assert running.updater.state.floors.time >= 1.8e9


@pytest.mark.parametrize("missing", ["has_camera", "is_connected"])
def test_what_could_not_be_shown_in_a_day_is_gone_back_from(running, missing):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    setattr(running, missing, False)
    began = running.now
    running.run(most_s=90_000, step_s=30)
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_UNPROVEN")
    assert 86_000 < running.now - began < 87_000
    assert served(running) == model("1").ref.sha256


def test_no_start_is_given_to_a_candidate_that_has_used_up_its_own(running):
    """Nor where the disk is full, and nothing of it can be written."""
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    for _ in range(2):
        running.kill()
        until(running, "probation")
    running.disk.is_full = True
    for _ in range(4):  # the fourth worker would be one too many
        running.kill()
        running.turn(5)
        assert served(running) == model("1").ref.sha256
    running.disk.is_full = False
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_CRASH")


def test_the_model_before_is_not_let_go_of_by_a_recall(running):
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    running.calls.clear()
    running.order(action="rollback")
    running.run()
    assert "keep" not in running.calls[: running.calls.index("swap") + 1]
    assert served(running) == model("1").ref.sha256


def test_a_worker_that_swaps_after_all_is_called_back_once_more(running):
    """It was loading when the order came to leave that model, and nothing stops that."""
    running.publish(model("2"))
    real = running.swap

    def slow(engine, ref):
        step = real(engine, ref)
        step.left *= 5
        return step

    running.swap = slow
    running.order(model("2"))
    until(running, "trial", step_s=0.2)
    running.run(lambda: running.open_steps, step_s=0.2)
    running.order(action="rollback")
    running.run(lambda: served(running) == model("2").ref.sha256, most_s=20, step_s=0.2)
    assert running.report.phase == "committed"
    running.run(lambda: served(running) == model("1").ref.sha256, most_s=20)
    running.run()
    assert running.report.source == "active"


@pytest.mark.parametrize("kind", ["slow", "still"])
def test_a_candidate_is_judged_on_a_full_disk_as_well(running, kind):
    running.publish(model("2", kind))
    running.order(model("2"))
    until(running, "trial", step_s=0.2)
    running.disk.is_full = True  # not even that its probation began can be written
    running.run(lambda: served(running) == model("2").ref.sha256, most_s=20)
    running.run(lambda: served(running) == model("1").ref.sha256, most_s=100)
    assert running.report.phase == "rolled_back"
    running.disk.is_full = False
    running.run()
    assert running.disk.state.deployment.phase == "rolled_back"
    assert running.disk.state.engine("").denied


@pytest.mark.parametrize("kind", ["good", "slow", "selftest"])
@pytest.mark.parametrize("is_lying", [False, True], ids=["lost", "landed"])
def test_each_write_of_the_state_fails_once(kind, is_lying):
    """Landed: the disk says that it failed, and has it all the same; then the power goes or not."""
    world = World()
    world.deploy(model("1"))
    before = world.disk.writes
    last = model("2", kind)
    world.deploy(last)
    count, end = world.disk.writes - before, world.report
    for number in range(1, count + 1):
        for is_cut in (False, True):
            world = World()
            world.deploy(model("1"))
            world.publish(last)
            world.disk.fails_at = {world.disk.writes + number}
            world.disk.is_lying = is_lying
            counter = world.order(last, counter=5000)
            world.run(lambda world=world: world.disk.writes >= min(world.disk.fails_at))
            assert served(world) is not None
            if is_cut:
                world.kill()
                world.order(last, counter=5000)
            world.run()
            assert (counter, world.report.phase) == ("d5000", end.phase)
            assert served(world) == (last if kind == "good" else model("1")).ref.sha256


def test_selftests_that_an_orderly_restart_ended_are_no_tries(running):
    running.publish(model("2"))
    running.order(model("2"))
    for _ in range(4):
        running.run(lambda: any(one.name == "selftest" for one in running.open_steps), step_s=0.2)
        running.restart_in_order()
    running.run()
    assert running.report.phase == "committed"


def test_what_others_say_is_kept_short_and_plain(running):
    import msgspec

    running.publish(model("2"))
    running.order(model("2"))
    until(running, "trial", step_s=0.2)
    running.run(lambda: served(running) == model("2").ref.sha256)
    running.workers[""].down("E_FRAME", "\udc80\x1b[2J" + "x" * 100_000)
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_FRAME")
    assert len(running.report.message) <= 501
    assert running.report.message.isprintable()
    assert b"xxx" in msgspec.json.encode(running.report)


def test_what_another_model_shows_is_no_proof_of_a_candidate(running):
    """Its files are damaged while it is on probation, and another worker runs what was before."""
    running.publish(model("2"))
    running.order(model("2"))
    until(running, "probation")
    running.disk.damaged.add(model("2").ref.sha256)
    running.workers[""].down("E_CRASH", "camera stuck", is_native=False)
    running.run()
    assert (running.report.phase, running.report.code) == ("rolled_back", "E_HASH")
    assert served(running) == model("1").ref.sha256
