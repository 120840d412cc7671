"""Whose orders count, and what others can do with them: A04, A22."""

import pytest
from ota.update_world import FACTORY, World, model


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


def test_a_pinned_board_stays_through_its_groups_orders_and_restarts(running):
    running.publish(model("2"), model("3"))
    running.order(model("2"), pinned=True, counter=5000)
    running.run()
    for _ in range(2):
        running.order(model("3"), scope="group", counter=6000)
        running.turn(5)
        assert (running.report.deployment_id, running.report.phase) == ("d5000", "committed")
        assert running.report.ignored.code == "E_PINNED"
        running.kill()
        running.run()
    running.order(model("2"), counter=5001)  # lets go: what the group said meanwhile counts
    running.order(model("3"), scope="group", counter=6000)
    running.run()
    assert (running.report.deployment_id, running.report.phase) == ("d6000", "committed")
    assert served(running) == model("3").ref.sha256


def test_a_boards_own_order_beats_its_groups(running):
    running.publish(model("2"), model("3"))
    running.order(model("3"), scope="group", counter=5000, deployment_id="g")
    running.order(model("2"), counter=5000, deployment_id="d")
    running.run()
    assert (running.report.deployment_id, served(running)) == ("d", model("2").ref.sha256)
    for _ in range(3):  # and it stays so, whichever comes again first
        running.kill()
        running.order(model("3"), scope="group", counter=5000, deployment_id="g")
        running.turn(3)
        running.order(model("2"), counter=5000, deployment_id="d")
        running.run()
        assert (running.report.deployment_id, running.report.phase) == ("d", "committed")


FACTORY_ORDER = b'{"deployment_id":"x","counter":1000,"action":"factory"}'
ABUSE = {
    "other engine": (FACTORY_ORDER.replace(b"{", b'{"engine":"e",'), "E_ENGINE"),
    "replay": (b'{"deployment_id":"x","counter":7,"name":"ssd","version":"1"}', "E_REPLAY"),
    "counter used": (FACTORY_ORDER, "E_CONFLICT"),
    "1 MB": (b'{"deployment_id":"' + b"x" * 1_000_000 + b'"}', "E_SIZE"),
    "1 MB of brackets": (b"[" * 1_000_000, "E_SIZE"),
    "another's status": (b'{"state":"online","at":1.0}', "E_JSON"),
    "a key twice": (b'{"counter":9999,"counter":9999,"deployment_id":"x"}', "E_JSON"),
    "huge counter": (b'{"deployment_id":"x","counter":9007199254740993}', "E_JSON"),
    "half a version": (b'{"deployment_id":"x","counter":9999,"name":"ssd"}', "E_DESIRED"),
    "a path": (b'{"deployment_id":"x","counter":9999,"name":"../x","version":"1"}', "E_JSON"),
    "retained null": (b"", None),
}  # fmt: skip


@pytest.mark.parametrize("abuse", ABUSE)
def test_abuse_is_ignored_with_a_code(running, abuse):
    """A22: nothing is begun, nothing is written, what runs runs on, and it is said why."""
    raw, code = ABUSE[abuse]
    before, writes, calls = running.report, running.disk.writes, len(running.calls)
    for scope in ("device", "group"):
        running.order(raw=raw, scope=scope)
        running.turn(3)
    assert (running.disk.writes, len(running.calls)) == (writes, calls)
    report = running.report
    assert (report.phase, report.deployment_id, report.model) == (
        before.phase, before.deployment_id, before.model,
    )  # fmt: skip
    if code is None:
        assert report.ignored is None
    elif abuse != "replay":  # a group's older one is an overtaken one, and none
        assert running.told[-1].ignored.code == code
    else:
        assert "E_REPLAY" in [one.ignored and one.ignored.code for one in running.told]
    # The next order is carried out.
    assert running.deploy(model("2")).phase == "committed"


def test_back_to_what_a_security_fix_replaced_is_refused_and_to_what_is_above_it_is_not():
    """A04: whoever asks, by whichever topic or action."""
    world = World()
    for number, floor in ((14, 0), (16, 0), (17, 15)):
        assert world.deploy(model(str(number), floor=floor)).phase == "committed"
    for scope in ("device", "group"):
        world.calls.clear()
        refused = world.deploy(model("14"), scope=scope)
        assert (refused.phase, refused.code) == ("refused", "E_ROLLBACK")
        assert "download" not in world.calls
        assert served(world) == model("17").ref.sha256
    world.kill()
    assert world.deploy(model("14")).code == "E_ROLLBACK"
    assert world.deploy(model("16")).phase == "committed"
    assert world.deploy(model("14")).code == "E_ROLLBACK"
    assert served(world) == model("16").ref.sha256


@pytest.mark.parametrize("phase", ["metadata", "downloading", "selftest", "trial", "probation"])
def test_an_order_for_an_engine_that_is_gone_blocks_no_other(phase):
    world = World(engines=("", "door"))
    world.publish(model("1"), model("2", name="door-net"))
    world.order(model("2", name="door-net"), engine="door")
    until(world, phase, step_s=0.2)
    world.engines = ("",)
    world.kill()
    world.order(model("1"))
    world.run()
    assert (world.report.phase, served(world)) == ("committed", model("1").ref.sha256)
    assert ("E_ENGINE", "door") in [(one.code, one.engine) for one in world.told]


def test_what_came_of_a_model_that_is_gone_hides_none_that_runs():
    world = World(engines=("", "door"))
    world.publish(model("1"), model("2", name="door-net"))
    world.order(model("1"))
    world.run()
    world.order(model("2", name="door-net"), engine="door")
    world.run()
    assert (world.report.engine, world.report.phase) == ("door", "committed")
    world.engines = ("",)
    world.restart_in_order()
    world.run(lambda: world.report.model is not None)
    report = world.report
    assert (report.engine, report.phase, report.source) == ("", "idle", "active")
    assert report.deployment_id is None


def test_a_way_back_does_not_wait_for_another_models_network():
    world = World(engines=("", "door"))
    door = model("2", name="door-net")
    world.publish(model("1"), door)
    world.order(door, engine="door")
    world.run()
    world.has_network = False
    waiting = world.order(model("1"))
    for _ in range(100):
        world.turn()
    assert (world.report.deployment_id, world.report.code) == (waiting, "E_NET")
    back = world.order(action="factory", engine="door")
    world.run(lambda: served(world, "door") == FACTORY, most_s=30)
    world.run(lambda: world.told[-1].deployment_id == waiting, most_s=200)
    ends = [one.phase for one in world.told if one.deployment_id == back]
    assert ends[-1] == "committed"
    # And what was put off is begun anew.
    world.has_network = True
    world.run()
    assert (world.report.deployment_id, world.report.phase) == (waiting, "committed")
    assert served(world) == model("1").ref.sha256


def test_two_ways_back_do_not_put_each_other_off():
    world = World(engines=("", "door"))
    door = model("2", name="door-net")
    world.publish(model("1"), door)
    world.order(door, engine="door")
    world.order(model("1"))
    world.run()
    writes = world.disk.writes
    world.order(action="rollback")
    world.order(action="rollback", engine="door")
    world.run(most_s=300)
    assert (served(world), served(world, "door")) == (FACTORY, FACTORY)
    assert world.disk.writes - writes < 20
