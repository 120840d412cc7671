"""Any sequence of orders and faults: what may never happen, and that it ends well (F29).

UPDATER_EXAMPLES asks for more than the few that each run of the suite explores, and has it said
how many they were.
"""

from __future__ import annotations

import atexit
import os
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ota.update_world import FACTORY, Killed, World, check_monotone, model

from agent.contract.updates import Reported
from agent.ota import rules

BAD = [
    "bundle",
    "selftest",
    "load",
    "crash",
    "crash_later",
    "hang",
    "slow",
    "still",
    "leak",
    "back",
]
NAMES = {"": "ssd", "door": "door-net"}  # of their models
MOSTLY = st.sampled_from(["", "", "", "door"])
MOSTLY_YES, MOSTLY_NO = st.sampled_from([True, True, False]), st.sampled_from([False, False, True])
SCOPES = st.sampled_from(["device", "group"])
STEPS = int(os.environ.get("UPDATER_STEPS", "40"))
EXAMPLES = int(os.environ.get("UPDATER_EXAMPLES", "30"))
SEEN: Counter[str] = Counter()
STATES: set[tuple[object, ...]] = set()
if "UPDATER_EXAMPLES" in os.environ:
    atexit.register(lambda: print(f"updater machine: {dict(SEEN)}, distinct states {len(STATES)}"))


class UpdaterMachine(RuleBasedStateMachine):
    """A board, its operator, and everything that goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(engines=tuple(NAMES), tell=self.on_told)
        self.world.swap_polls = 5
        self.release = 10
        self.retained: dict[tuple[str, str], dict] = {}
        self.promised = self.world.promised
        self.lies: list[str] = []
        self.last_told: tuple[str | None, str] = None, ""

    # What it says is so when it says it.

    def on_told(self, world: World, report: Reported) -> None:
        worker, state = world.workers[report.engine], world.promised
        if (report.deployment_id, report.phase) != self.last_told:
            self.last_told = report.deployment_id, report.phase
            SEEN[f"{report.phase} {report.code or ''}".strip()] += 1
        has = world.updater.state.engine(report.engine)
        runs = {None: "none", FACTORY: "factory"}.get(worker.runs, worker.runs)
        if report.source == "active" and runs != has.active.sha256:
            self.lies.append(f"active, but {runs}")
        if report.source == "candidate" and runs in ("none", "factory"):
            self.lies.append(f"candidate, but {runs}")
        if (report.source == "factory") != (runs == "factory"):
            self.lies.append(f"{report.source}, but {runs}")
        is_saved = world.updater._ledger.is_saved
        if report.phase == "committed" or (report.phase in rules.ON_TRIAL and is_saved):
            on_disk = state.deployment
            if on_disk is None or on_disk.phase != report.phase:
                self.lies.append(f"{report.phase}, but on the disk {on_disk}")
        if report.phase == "committed" and report.deployment_id != (
            state.deployment.order.desired.deployment_id
        ):
            self.lies.append(f"{report.deployment_id} is not on the disk")
        if report.floors.targets_version > state.floors.targets_version:
            self.lies.append("floors that are not on the disk")

    # What the operator does.

    def publish(self, engine: str, kind: str, **fields):
        self.release += 1
        version, number = str(self.release), self.release
        made = model(version, kind, name=NAMES[engine], counter=number, **fields)
        self.world.publish(made)
        return made

    def send(self, engine: str, scope: str, one=None, **fields) -> None:
        counter = fields.pop("counter", None) or next(self.world.counter)
        fields = {"one": one, "counter": counter, "engine": engine, **fields}
        self.retained[engine, scope] = fields
        self.world.order(scope=scope, **fields)
        SEEN["orders"] += 1

    @initialize()
    def first(self) -> None:
        self.send("", "device", self.publish("", "good"))
        self.world.run()

    @rule(engine=MOSTLY, scope=SCOPES, floor=st.booleans())
    def order_a_good_model(self, engine: str, scope: str, floor: bool) -> None:
        self.send(engine, scope, self.publish(engine, "good", floor=self.release if floor else 0))

    @rule(engine=MOSTLY, scope=SCOPES, kind=st.sampled_from(BAD))
    def order_a_bad_model(self, engine: str, scope: str, kind: str) -> None:
        self.send(engine, scope, self.publish(engine, kind))

    @rule(data=st.data(), engine=MOSTLY, scope=SCOPES)
    def order_a_known_model(self, data: st.DataObject, engine: str, scope: str) -> None:
        known = [at for at in sorted(self.world.repository) if at[0] == NAMES[engine]]
        if known:
            self.send(engine, scope, self.world.repository[data.draw(st.sampled_from(known))])

    @rule(scope=SCOPES)
    def order_the_last_once_more_under_its_id(self, scope: str) -> None:
        last = self.retained.get(("", scope))
        if last is not None and last["one"] is not None:
            by = last.get("deployment_id", f"d{last['counter']}")
            self.send("", scope, last["one"], deployment_id=by)

    @rule(engine=MOSTLY)
    def order_another_board_s(self, engine: str) -> None:
        self.send(engine, "device", self.publish(engine, "good", boards=("jetson-*",)))

    @rule(engine=MOSTLY, action=st.sampled_from(["rollback", "factory"]))
    def order_back(self, engine: str, action: str) -> None:
        self.send(engine, "device", action=action)

    @rule(pinned=st.booleans())
    def pin(self, pinned: bool) -> None:
        self.send("", "device", self.publish("", "good"), pinned=pinned)

    @rule(raw=st.sampled_from([b"junk", b"x" * 9000, b"{}", b"", b"[" * 4000]))
    def flood(self, raw: bytes) -> None:
        for _ in range(30):
            self.world.order(raw=raw)

    @rule(scope=SCOPES)
    def replay(self, scope: str) -> None:
        one = self.world.repository[min(self.world.repository)]
        self.world.order(one, scope=scope, counter=3)
        self.world.order(one, scope=scope, counter=next(iter(self.retained.values()))["counter"])

    # What the world does.

    @rule(seconds=st.sampled_from([0.1, 1.0, 1.0, 30.0]), times=st.integers(1, 25))
    def time_passes(self, seconds: float, times: int) -> None:
        kills = self.world.kills
        for _ in range(times):
            self.world.turn(seconds)
            self.look()
        if self.world.kills > kills:
            self.retained_again()

    @rule(
        kind=st.sampled_from(["good", "good", *BAD]),
        phase=st.sampled_from(["downloading", "selftest", "trial", "probation", "probation"]),
    )
    def an_order_gets_as_far_as(self, kind: str, phase: str) -> None:
        """Faults are to meet each phase, however short it is."""
        self.all_is_well()
        self.send("", "device", self.publish("", kind))
        kills = self.world.kills
        for _ in range(60):
            deployment = self.world.updater.state.deployment
            is_it = deployment.order.desired.counter == self.retained["", "device"]["counter"]
            if is_it and deployment.phase == phase:
                break
            self.world.turn(0.5)
            self.look()
        if self.world.kills > kills:
            self.retained_again()

    @rule(is_up=MOSTLY_YES)
    def network(self, is_up: bool) -> None:
        self.world.has_network = is_up

    @rule(is_up=MOSTLY_YES)
    def broker(self, is_up: bool) -> None:
        self.world.is_connected = is_up
        if is_up:
            self.retained_again()

    @rule(is_there=MOSTLY_YES)
    def camera(self, is_there: bool) -> None:
        self.world.has_camera = is_there

    @rule(is_hot=MOSTLY_NO)
    def throttling(self, is_hot: bool) -> None:
        self.world.is_throttled = is_hot

    @rule(is_full=MOSTLY_NO, is_lying=st.booleans())
    def disk(self, is_full: bool, is_lying: bool) -> None:
        self.world.disk.is_full, self.world.disk.is_lying = is_full, is_lying

    @rule(after=st.integers(1, 6), is_lying=st.booleans())
    def one_write_fails_soon(self, after: int, is_lying: bool) -> None:
        self.world.disk.fails_at.add(self.world.disk.writes + after)
        self.world.disk.is_lying = is_lying

    @rule(is_set=MOSTLY_YES)
    def clock(self, is_set: bool) -> None:
        self.world.has_clock = is_set

    @rule()
    def all_is_well(self) -> None:
        world = self.world
        world.disk.fails_at.clear()
        world.disk.is_full = world.disk.is_lying = world.is_throttled = False
        world.has_network = world.is_connected = world.has_camera = world.has_clock = True
        self.retained_again()

    @rule(years=st.sampled_from([-10, 10]))
    def clock_jumps(self, years: int) -> None:
        self.world.wall += years * 3.2e7

    @rule(times=st.integers(1, 4), seconds=st.sampled_from([0.0, 3.0]))
    def kill(self, times: int, seconds: float) -> None:
        for _ in range(times):
            self.world.kill()
            self.retained_again()
            self.world.turn(seconds)
            self.look()

    @rule(times=st.integers(1, 2))
    def kill_on_a_full_disk(self, times: int) -> None:
        self.world.disk.is_full, self.world.disk.is_lying = True, False
        self.kill(times, 3.0)

    @rule(after=st.integers(1, 12))
    def power_cut_soon(self, after: int) -> None:
        self.world.cut_at = {self.world.points + after}

    @rule()
    def orderly_restart(self) -> None:
        self.world.restart_in_order()
        self.retained_again()

    @rule(engine=MOSTLY, native=st.booleans())
    def worker_crashes(self, engine: str, native: bool) -> None:
        worker = self.world.workers[engine]
        if worker.runs is not None:
            try:
                worker.down("E_CRASH", "SIGSEGV", is_native=native)
            except Killed:
                self.kill(1, 0.0)

    @precondition(lambda self: self.world.disk.stored)
    @rule(data=st.data())
    def a_page_rots(self, data: st.DataObject) -> None:
        stored = sorted(self.world.disk.stored)
        self.world.disk.damaged.add(data.draw(st.sampled_from(stored)))

    def retained_again(self) -> None:
        if self.world.is_connected:
            for (_, scope), fields in self.retained.items():
                self.world.order(scope=scope, **fields)

    # What holds.

    @invariant()
    def look(self) -> None:
        world = self.world
        assert not self.lies, self.lies
        state = world.disk.state
        check_monotone(self.promised, world.promised)
        self.promised = world.promised
        deployment = state.deployment
        SEEN["looks"] += 1
        if deployment is not None:
            assert deployment.transitions <= rules.MOST_TRANSITIONS + 1
            assert deployment.attempts <= rules.LIMITS["metadata"].tries
        for engine in NAMES:
            self.look_at(engine)

    def look_at(self, engine: str) -> None:
        world, state = self.world, self.world.disk.state
        runs, worker = state.engine(engine), world.workers[engine]
        for ref in (runs.active, runs.previous):
            if ref is None:
                continue
            # Only what has passed everything is gone back to, and nothing below its floor.
            assert ref.sha256 in world.proven
            assert world.known[ref.sha256].kind == "good"
            assert ref.sha256 in world.disk.stored | world.disk.rotted
        if runs.active is not None:
            floor = state.release(runs.active.name).security_floor
            assert runs.active.release_counter >= floor
        # Something runs, or is about to; and nothing runs that was not tried on this board.
        if worker.runs is None:
            assert worker.start_in_s <= 2.0
        elif worker.runs != FACTORY:
            assert worker.runs in world.verified & (world.examined | world.proven)
        deployment = state.deployment
        faults = (world.disk.is_full, world.has_network, world.is_throttled, world.has_clock)
        STATES.add((
            engine, rules.phase_of(state), deployment and (deployment.code, deployment.attempts),
            deployment and deployment.order.desired.action, runs.active is None,
            runs.previous is None, worker.runs in (None, FACTORY), worker.kind, faults,
            world.updater._ledger.is_saved, tuple(sorted({step.name for step in world.open_steps})),
        ))  # fmt: skip

    def teardown(self) -> None:
        """When faults stop, the next order is carried out."""
        world = self.world
        world.cut_at = set()
        self.all_is_well()
        world.run(most_s=20_000.0, step_s=2.0)
        self.look()
        for engine in NAMES:
            good = self.publish(engine, "good")
            self.send(engine, "device", good)
            world.run(most_s=2_000.0)
            self.look()
            assert world.report.phase == "committed", world.report
            assert world.workers[engine].runs == good.ref.sha256
            assert (world.report.engine, world.report.source) == (engine, "active")
        SEEN.update(
            runs=1, kills=world.kills, late_swaps=world.late_swaps, writes=world.disk.writes,
            steps=len(world.calls), deaths=sum(world.deaths.values()), seconds=int(world.now),
        )  # fmt: skip


UpdaterMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    # Thousands of runs are for finding out; what is found is made small by a later, shorter one.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *[Phase.shrink] * (EXAMPLES <= 100)],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestUpdaterMachine = UpdaterMachine.TestCase
