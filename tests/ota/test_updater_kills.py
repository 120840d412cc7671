"""The power goes at every point of an update, and the board still ends where it should (F02)."""

import os
import random
from pathlib import Path

import pytest
from ota.crash_disk import CrashDisk
from ota.update_world import FACTORY, Killed, World, model

from agent.ota import rules
from agent.ota.slots import Slots

# Of all operations of the disk, one in so many is cut; 1 for all of them.
ONE_IN = int(os.environ.get("UPDATER_CUTS_ONE_IN", "9"))
WAYS = ["good", "selftest", "crash", "crash_later", "slow", "back", "rollback", "factory"]


def begin(way, **fields):
    """Return a world that runs version 2, can go back to 1, and has just been given an order."""
    world = World(**fields)
    world.deploy(model("1"))
    world.deploy(model("2"))
    third = model("3", way if way not in ("rollback", "factory") else "good")
    world.publish(third)
    world.points = 0
    world.told.clear()
    if way in ("rollback", "factory"):
        world.order(action=way)
    else:
        world.order(third)
    return world


def finish(world):
    """Let the update end; retained messages come again with each start."""
    raw = [content for unread in world.updater._orders._unread.values() for content in unread]
    kills = world.kills
    for _ in range(3000):
        if world.kills > kills:
            kills = world.kills
            for content in raw:
                world.updater.on_desired(content, "device")
        world.turn()
        # Something always runs, or is about to.
        worker = world.workers[""]
        assert worker.runs is not None or worker.start_in_s <= 2.0
        if world.is_settled and world.updater.state.deployment.order.desired.counter >= 1002:
            return
    raise AssertionError(f"still {world.report.phase} {world.report.message}")


def check_end(world, way, *, may_be_worn):
    state, report = world.disk.state, world.report
    names = {1: model("1").ref.sha256, 2: model("2").ref.sha256, 3: model("3").ref.sha256}
    runs = world.workers[""].runs
    assert report.phase in rules.ENDS
    assert world.most_transitions <= rules.MOST_TRANSITIONS + 1
    assert report.source in ("active", "factory")
    expected = {"good": 3, "rollback": 1}.get(way, 2)
    wanted = FACTORY if way == "factory" else names[expected]
    if way in ("good", "rollback", "factory"):
        if may_be_worn and report.phase != "committed":
            wanted = names[2]  # gave up, for all the restarts, and stayed
            assert report.code in ("E_CRASH", "E_LOOP")
        else:
            assert (report.phase, report.code) == ("committed", None)
    else:
        assert report.phase in ("refused", "rolled_back")
        assert names[3] not in world.disk.stored
    assert runs == wanted
    active = state.engine("").active
    assert (FACTORY if active is None else active.sha256) == wanted
    # What was told as committed was so on the disk: nothing later took it back.
    told = [one.phase for one in world.told if one.deployment_id == report.deployment_id]
    assert ("committed" in told) == (report.phase == "committed")


def points_of(way):
    world = begin(way)
    finish(world)
    check_end(world, way, may_be_worn=False)
    return world.points


@pytest.mark.parametrize("way", WAYS)
def test_one_kill_at_every_point(way):
    """Before and after each write of the state, and before and after each step is begun."""
    landed = 0
    for point in range(1, points_of(way) + 1):
        world = begin(way)
        world.cut_at = {point}
        finish(world)
        assert world.kills == 1
        landed += 1
        check_end(world, way, may_be_worn=False)
    assert landed >= 12


def test_one_kill_at_every_point_with_the_real_state_files(tmp_path):
    for point in range(1, points_of("good") + 1, 11):
        folder = tmp_path / str(point)
        folder.mkdir()
        world = begin("good", files=lambda _, folder=folder: Slots(folder))
        world.cut_at = {point}
        finish(world)
        check_end(world, "good", may_be_worn=False)
        assert Slots(folder).read() == world.updater.state


@pytest.mark.parametrize("way", WAYS)
def test_several_kills(way):
    """Pairs and more of them at random; the last start is never cut."""
    chance = random.Random(20261121)
    total = points_of(way)
    for _ in range(100 // ONE_IN):
        world = begin(way)
        world.cut_at = set(chance.sample(range(1, 3 * total), chance.randint(2, 5)))
        finish(world)
        check_end(world, way, may_be_worn=True)


@pytest.mark.parametrize("way", WAYS)
def test_kills_at_any_time(way):
    """Not at calls, but between turns: steps and workers are lost in the middle."""
    for second in range(1, 90, 7):
        world = begin(way)
        raw = list(world.updater._orders._unread["device"])
        for _ in range(second):
            world.turn()
        world.kill()
        world.updater.on_desired(raw[0], "device")
        finish(world)
        check_end(world, way, may_be_worn=False)


def test_a_board_that_is_never_up_for_long_ends_on_what_it_had():
    """Every start is cut short, a little later each time, until it is left alone."""
    world = begin("good")
    raw = list(world.updater._orders._unread["device"])
    for lifetime in range(1, 60):
        world.updater.on_desired(raw[0], "device")
        for _ in range(lifetime % 25):
            world.turn()
        world.kill()
    world.updater.on_desired(raw[0], "device")
    finish(world)
    check_end(world, "good", may_be_worn=True)


class Power:
    """The real state files on a disk that forgets what was not waited for."""

    def __init__(self, seed):
        self.chance, self.disk = random.Random(seed), CrashDisk()
        self.ops, self.cut_at, self.choices = 0, None, 0

    def __call__(self, world):
        """Open the files, after a power cut but for the first time."""
        if world.kills:
            left = list(self.disk.after_power_cuts(8, self.chance))
            self.choices += len(left)
            self.disk = self.chance.choice(left)

        def before_op(*_):
            self.ops += 1
            if self.ops == self.cut_at:
                raise Killed

        self.disk.before_op = before_op
        return Slots(Path("/state"), self.disk)


def cut(way, at):
    power = Power(seed=at or 0)
    world = begin(way, files=power)
    power.ops, power.cut_at = 0, at
    finish(world)
    check_end(world, way, may_be_worn=False)
    assert world.kills == (at is not None)
    power.disk.before_op = lambda *_: None
    assert Slots(Path("/state"), power.disk).read() == world.updater.state
    return power


@pytest.mark.parametrize("way", WAYS)
def test_power_cut_at_operations_of_the_disk(way):
    """Between open, write, fsync and the next; what was not waited for is there or not (F03)."""
    total = cut(way, None).ops
    choices = sum(cut(way, at).choices for at in range(1, total + 1, ONE_IN))
    assert choices >= total // ONE_IN
    print(f"{way}: {-(-total // ONE_IN)} of {total} operations cut, {choices} disks found")
