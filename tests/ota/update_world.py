"""A board without hardware: the updater between a repository, a disk and workers that it makes up.

Time is a number. Every call that leaves the updater is a point at which the power may go.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
from dataclasses import dataclass, field

from msgspec.structs import replace

from agent.contract.payloads import ModelIdentity
from agent.contract.updates import Desired, Floors, Reported
from agent.ota import rules
from agent.ota.probation import LONGEST_LOOK_S
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef, State
from agent.ota.steps import (
    Down,
    Refused,
    Reply,
    Runs,
    Step,
    Succeeded,
    Target,
    Vitals,
    Working,
)
from agent.ota.told import Board
from agent.ota.updater import Updater

FPS = 30.0
SIZE = 6_000_000
FACTORY = "factory"


class Killed(BaseException):
    """The power went."""


@dataclass(frozen=True)
class Model:
    """What a version does once it is run.

    good, or where it fails: bundle, selftest, load (its swap is refused), crash (while it loads),
    crash_later (after `after_s`), hang, slow, still (gives no results), leak (until its worker is
    ended for it), back (its worker goes back by itself).
    """

    ref: BundleRef
    kind: str = "good"
    after_s: float = 7.0
    boards: tuple[str, ...] = ()
    min_agent: str | None = None


def model(version, kind="good", *, name="ssd", counter=None, floor=0, salt="", **custom):
    number = counter if counter is not None else int(version)
    ref = BundleRef(
        sha256=hashlib.sha256(f"{name}@{version}{salt}".encode()).hexdigest(),
        name=name,
        version=str(version),
        release_counter=number,
        security_floor=floor,
        p95_ms=20.0,
    )
    return Model(ref, kind, **custom)


class MadeStep:
    """Takes some polls, then says what `end` returns."""

    def __init__(self, world: World, end, polls=2, name=""):
        self.world, self.end, self.left, self.name = world, end, polls, name
        self.is_over = False
        world.open_steps.append(self)

    def poll(self) -> Reply:
        assert not self.is_over, f"{self.name} was polled after its end"
        if self.left > 0:
            self.left -= 1
            return Working(progress=0.5, bytes_done=1, bytes_total=2)
        self.close()
        return self.end()

    def stop(self) -> None:
        if not self.is_over and self.given_up is not None:
            self.given_up()
        self.close()

    def close(self):
        self.is_over = True
        if self in self.world.open_steps:
            self.world.open_steps.remove(self)

    given_up = None  # what goes on all the same


@dataclass
class Disk:
    """What a power cut leaves."""

    state: State = field(default_factory=State)
    stored: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    rotted: set[str] = field(default_factory=set)  # was damaged, and thrown away for that
    fetched: set[str] = field(default_factory=set)
    is_full: bool = False  # for anything
    fails_at: set[int] = field(default_factory=set)  # of all writes, by number
    is_lying: bool = False  # writes that fail land all the same
    has_room: bool = True  # for a bundle
    writes: int = 0


class World:
    """Its parts can be broken at will; `turn` lets time pass."""

    def __init__(self, *, engines=("",), is_enabled=True, probation_s=60.0, tell=None, files=None):
        self.files = files  # opens the real state files, with each start
        self.engines, self.is_enabled, self.probation_s = engines, is_enabled, probation_s
        self.disk = Disk()
        self.repository: dict[tuple[str, str], Model] = {}
        self.known: dict[str, Model] = {}
        self.has_repository = True  # in the settings
        self.now = 1000.0
        self.wall = 1.8e9
        self.has_network = self.is_connected = self.has_camera = True
        self.has_clock = True
        self.swap_polls = 2
        self.is_throttled = False
        self.acknowledged = 0
        self.told: list[Reported] = []
        self.calls: list[str] = []
        self.open_steps: list[MadeStep] = []
        self.points = 0
        self.cut_at: set[int] = set()
        self.kills = self.late_swaps = 0
        self.verified: set[str] = set()  # bundles, since they were last fetched
        self.examined: set[str] = set()
        self.proven: set[str] = set()  # that have reached a probation
        # Of workers and boards with the candidate, by order.
        self.deaths: dict[tuple[str, int], int] = {}
        self.attempted: State | None = None
        self.promised = State()  # what a write that succeeded has left
        self.most_transitions = 0
        self.counter = itertools.count(1_000)
        self.listen = tell
        self.start()

    # Life and death.

    def start(self):
        self.open_steps.clear()
        self.workers = {name: Worker(self, name) for name in self.engines}
        self.updater = Updater(
            slots=self,
            steps=self,
            engines=self.engines,
            board=Board(device="porch", boot_id="b", id="rpi-4", agent_version="0.3.0"),
            is_enabled=self.is_enabled,
            has_repository=self.has_repository,
            probation_s=self.probation_s,
            vitals=self.vitals,
            tell=self.on_told,
            wall=lambda: self.wall,
            chance=lambda: 0.5,
        )  # fmt: skip
        self.updater.resume(self.now)

    def kill(self, *, is_orderly=False):
        """Start anew, with what the disk has."""
        self.kills += 1
        if not is_orderly:
            for worker in self.workers.values():
                self.note_death(worker.engine, worker.runs)
        for _ in range(10):
            try:
                self.start()
                return
            except Killed:
                continue
        raise AssertionError("does not start")

    def restart_in_order(self):
        """As a service manager does."""
        try:
            self.updater.stop()
        except Killed:
            self.kill()
            return
        self.kill(is_orderly=True)

    def point(self):
        """The power may go here."""
        self.points += 1
        if self.points in self.cut_at:
            raise Killed

    def turn(self, seconds=1.0, *, check=True):
        self.now += seconds
        self.wall += seconds
        if self.is_connected:
            self.acknowledged += 1
        try:
            for worker in self.workers.values():
                worker.turn(seconds)
            if check:
                self.updater.check(self.now)
        except Killed:
            self.kill()
        for worker in self.workers.values():
            self.look_at(worker, seconds)
        deployment = self.updater.state.deployment
        if deployment is not None:
            self.most_transitions = max(self.most_transitions, deployment.transitions)
        assert len([one for one in self.open_steps if one.name != "swap"]) <= 1
        assert len([one for one in self.open_steps if one.name == "swap"]) <= 1

    def run(self, until=None, most_s=50_000.0, step_s=1.0):
        """Let time pass until an order has come to its end, or to what `until` says."""
        until = until or (lambda: self.is_settled)
        ends = self.now + most_s
        while not until():
            assert self.now < ends, f"still {self.report.phase} {self.report.message}"
            self.turn(step_s)

    def note_death(self, engine, runs):
        """Count against a candidate; no order costs more than three."""
        deployment = self.updater.state.deployment
        if deployment is None or deployment.engine != engine or runs in (None, FACTORY):
            return
        candidate, active = deployment.candidate, self.updater.state.engine(engine).active
        if active is not None and active.sha256 == runs:
            return
        if deployment.phase in rules.ON_TRIAL and candidate and runs == candidate.sha256:
            order = deployment.order.desired.deployment_id, deployment.order.desired.counter
            self.deaths[order] = self.deaths.get(order, 0) + 1
            assert self.deaths[order] <= rules.LIMITS["trial"].tries

    def look_at(self, worker, seconds):
        """No worker runs for long what it should not, and none a bad model while that shows."""
        is_settling = worker.runs is None or self.open_steps or not self.updater._ledger.is_saved
        if is_settling or worker.runs in self.expected(worker.engine):
            worker.wrong_turns, worker.wrong_s = 0, 0.0
        else:
            worker.wrong_turns, worker.wrong_s = worker.wrong_turns + 1, worker.wrong_s + seconds
        assert worker.wrong_turns <= 12 or worker.wrong_s <= 15, f"runs {worker.runs}"
        is_shown = self.has_camera and not self.is_throttled
        if not is_shown or worker.kind not in ("slow", "still"):
            worker.bad_s = 0.0
        elif seconds <= LONGEST_LOOK_S:
            worker.bad_s += seconds
        assert worker.bad_s <= 90, f"{worker.kind} for {worker.bad_s} s"

    def note_load(self, engine, ref):
        """What runs is whole, was tried on this board before, and is counted if it is on trial."""
        if ref is None:
            return
        assert ref.sha256 in self.disk.stored & self.verified - self.disk.damaged
        assert ref.sha256 in self.examined | self.proven
        state, deployment = self.disk.state, self.disk.state.deployment
        is_trial = deployment is not None and deployment.phase in rules.ON_TRIAL
        if is_trial and deployment.engine == engine and deployment.candidate == ref:
            order = deployment.order.desired.deployment_id, deployment.order.desired.counter
            if state.engine(engine).active != ref and deployment.order == self.order_of(engine):
                assert self.deaths.get(order, 0) < deployment.attempts <= 3

    def order_of(self, engine):
        return self.updater.state.orders.get(engine)

    @property
    def is_settled(self):
        if self.updater.state is not self.disk.state or self.open_steps:
            return False
        if self.updater._is_littered or self.updater._collecting is not None:
            return False
        if self.orders_wait() or rules.phase_of(self.disk.state) not in rules.ENDS:
            return False
        return all(worker.runs in self.expected(name) for name, worker in self.workers.items())

    def orders_wait(self):
        orders, state = self.updater._orders, self.updater.state
        has_unread = any(orders._unread.values())
        waits = any(orders.next(state, engine) is not None for engine in self.engines)
        return has_unread or (waits and self.is_enabled)

    def expected(self, engine):
        """Return what may run: what should, or what a start finds where that is damaged."""
        found = self.choose(self.disk.state, engine, may_try=True)
        wanted = rules.wanted(self.disk.state, engine)
        return {FACTORY if ref is None else ref.sha256 for ref in (found, wanted)}

    def choose(self, state, engine, *, may_try):
        """Return what a worker loads: as `agent.ota.loader` does."""
        runs, trial, choices = state.engine(engine), state.deployment, []
        if trial is not None and trial.phase in rules.ON_TRIAL and trial.engine == engine:
            choices = [trial.candidate] * may_try
        return next(
            ref
            for ref in [*choices, runs.active, runs.previous, None]
            if ref is None
            or (ref.sha256 in self.disk.stored and ref.sha256 not in self.disk.damaged)
        )

    @property
    def report(self):
        return self.updater.reported()

    def on_told(self, report):
        self.told.append(report)
        if self.listen is not None:
            self.listen(self, report)

    # Orders.

    def publish(self, *models):
        for one in models:
            self.repository[one.ref.name, one.ref.version] = one
            self.known[one.ref.sha256] = one

    def order(self, one=None, *, action="run", scope="device", counter=None, raw=None, **fields):
        """Send an order; return its deployment id."""
        number = next(self.counter) if counter is None else counter
        desired = {"deployment_id": f"d{number}", "counter": number, "action": action}
        if one is not None:
            desired |= {"name": one.ref.name, "version": one.ref.version}
        desired |= fields
        self.updater.on_desired(json.dumps(desired).encode() if raw is None else raw, scope)
        return desired["deployment_id"]

    def deploy(self, one, **fields):
        """Order a version and wait for the end."""
        self.publish(one)
        self.order(one, **fields)
        self.run()
        return self.report

    # The disk.

    def read(self):
        if self.files is None:
            self.promised = self.disk.state
        else:
            self.slots = self.files(self)
            before, self.disk.state = self.disk.state, self.slots.read()
            check_monotone(before, self.disk.state)
            found = replace(self.disk.state, generation=0)
            assert found in [replace(one, generation=0) for one in (before, self.attempted) if one]
            self.promised = self.disk.state
        return self.disk.state

    def write(self, state):
        self.point()
        before = self.disk.state
        self.disk.writes += 1
        self.attempted = state
        if self.disk.is_full or self.disk.writes in self.disk.fails_at:
            if self.disk.is_lying:
                self.disk.state = replace(state, generation=before.generation + 1)
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.files is not None:
            self.disk.state = self.slots.write(state)
        else:
            self.disk.state = replace(state, generation=before.generation + 1)
        check_monotone(self.promised, self.disk.state)
        self.promised = self.disk.state
        deployment = state.deployment
        if deployment is not None and deployment.phase == "probation" and deployment.candidate:
            self.proven.add(deployment.candidate.sha256)
        self.point()
        return self.disk.state

    # The steps.

    def begin(self, name, end, polls=2):
        self.point()
        self.calls.append(name)
        if name in ("download", "selftest", "shadow"):
            self.check_not_denied()
        step = MadeStep(self, end, polls, name)
        self.point()
        return step

    def check_not_denied(self):
        deployment = self.disk.state.deployment
        by = deployment.order.desired.deployment_id
        for denied in self.disk.state.engine(deployment.engine).denied:
            assert (denied.sha256, denied.deployment_id) != (deployment.candidate.sha256, by)

    def metadata(self, wanted: Desired, floors: Floors) -> Step:
        def end():
            if not self.has_clock:
                return Refused(
                    code="E_CLOCK", message="nothing vouches for the time",
                    is_final=False, clock_trusted=False,
                )  # fmt: skip
            if not self.has_network:
                return Refused(code="E_NET", message="no route", is_final=False)
            found = self.repository.get((wanted.name or "", wanted.version or ""))
            if found is None:
                return Refused(code="E_NET", message="not there", is_final=True)
            versions = replace(Floors(), targets_version=len(self.repository), time=self.wall)
            target = Target(
                ref=replace(found.ref, p95_ms=None),
                size=SIZE,
                boards=found.boards,
                min_agent=found.min_agent,
            )
            return Succeeded(target=target, floors=versions, clock_trusted=True)

        return self.begin("metadata", end)

    def download(self, wanted, ref, size, floors) -> Step:
        def end():
            if not self.has_network:
                return Refused(code="E_NET", message="no route", is_final=False)
            self.disk.fetched.add(ref.sha256)
            return Succeeded()

        return self.begin("download", end, polls=5)

    def verify(self, ref, size) -> Step:
        def end():
            if ref.sha256 in self.disk.damaged:
                self.disk.damaged.discard(ref.sha256)
                self.disk.rotted.add(ref.sha256)
                self.disk.stored.discard(ref.sha256)
                return Refused(code="E_HASH", message="damaged", is_final=False)
            if ref.sha256 not in self.disk.stored:
                if self.known[ref.sha256].kind == "bundle":
                    return Refused(code="E_BUNDLE", message="a member too many")
                if ref.sha256 not in self.disk.fetched:
                    return Refused(code="E_HASH", message="not here", is_final=False)
                if self.disk.is_full:
                    return Refused(code="E_SPACE", message="full", is_final=False)
                self.disk.stored.add(ref.sha256)
                self.disk.rotted.discard(ref.sha256)
            self.verified.add(ref.sha256)
            return Succeeded(ref=self.known[ref.sha256].ref)

        return self.begin("verify", end)

    def selftest(self, engine, ref) -> Step:
        assert ref.sha256 in self.disk.stored

        def end():
            if self.known[ref.sha256].kind == "selftest":
                return Refused(code="E_GOLDEN", message="other answers")
            self.examined.add(ref.sha256)
            return Succeeded(p95_ms=12.0, rss_mib=80.0)

        return self.begin("selftest", end)

    def shadow(self, engine, ref) -> Step:
        assert ref.sha256 in self.disk.stored
        return self.begin("shadow", lambda: Succeeded(agreement=0.9))

    def swap(self, engine, ref) -> Step:
        worker = self.workers[engine]
        assert ref is None or ref.sha256 in self.disk.stored | self.disk.rotted
        if worker.runs == (FACTORY if ref is None else ref.sha256):
            identity = worker.identity
            return self.begin("swap", lambda: Succeeded(model=identity), polls=0)
        step = self.begin("swap", lambda: worker.swap(ref), polls=self.swap_polls)
        step.given_up = lambda: worker.give_up(ref)
        return step

    def keep(self, engine) -> None:
        self.calls.append("keep")

    def restart(self, engine) -> None:
        self.calls.append("restart")
        self.workers[engine].end()

    def collect(self, keep, keep_fetched) -> Step:
        def end():
            self.disk.stored &= keep
            self.disk.fetched &= keep_fetched | keep
            return Succeeded()

        return self.begin("collect", end, polls=1)

    def has(self, ref) -> bool:
        return ref.sha256 in self.disk.stored

    def require_space(self, ref, size) -> None:
        if self.disk.is_full or not self.disk.has_room:
            raise RefusalError("E_SPACE", "has 0 MiB free")

    def vitals(self, engine) -> Vitals:
        worker = self.workers[engine]
        kind = worker.kind
        return Vitals(
            frames=worker.frames,
            acknowledged=self.acknowledged,
            p95_ms=40.0 if kind == "slow" or self.is_throttled else 12.0,
            is_fed=worker.runs is not None and self.has_camera,
            is_connected=self.is_connected,
            is_throttled=self.is_throttled,
        )


@dataclass
class Worker:
    """A supervisor and its worker."""

    world: World
    engine: str
    runs: str | None = None  # a bundle's hash, or FACTORY
    before: str | None = None
    # What it loads although the swap was given up; it takes no other meanwhile.
    late: list[BundleRef | None] = field(default_factory=list)
    start_in_s: float = 1.0
    age_s: float = 0.0
    frames: int = 0
    wrong_turns: int = 0
    wrong_s: float = 0.0
    bad_s: float = 0.0
    starts: list[str] = field(default_factory=list)

    @property
    def kind(self):
        known = self.world.known.get(self.runs or "")
        return known.kind if known is not None else "good"

    @property
    def after_s(self):
        return self.world.known[self.runs].after_s

    def turn(self, seconds):
        if self.runs is None:
            self.start_in_s -= seconds
            if self.start_in_s <= 0:
                self.start()
            return
        self.age_s += seconds
        if self.late:
            self.swap(self.late.pop())
        elif self.kind == "crash_later" and self.age_s > self.after_s:
            self.down("E_CRASH", "SIGSEGV")
        elif self.kind == "leak" and self.age_s > self.after_s:
            self.down("E_CRASH", "memory limit")
        elif self.kind == "hang" and self.age_s > 15:
            self.down("E_HANG", "stage inference stuck")
        elif self.kind == "back" and self.age_s > 3:
            self.go_back()
        elif self.world.has_camera and self.kind != "still":
            self.frames += int(FPS * seconds)

    def start(self):
        state, may_try = self.world.updater.for_worker(self.engine)
        ref = self.world.choose(state, self.engine, may_try=may_try)
        self.starts.append(FACTORY if ref is None else ref.sha256)
        self.world.note_load(self.engine, ref)
        kind = "good" if ref is None else self.world.known[ref.sha256].kind
        if kind == "crash":
            self.runs = ref.sha256
            self.down("E_CRASH", "SIGSEGV while it loads")
        elif kind == "load":
            self.down("E_SELFTEST", "no such operator")
        else:
            self.set(ref)

    def set(self, ref):
        self.before, self.runs = self.runs, FACTORY if ref is None else ref.sha256
        self.age_s = 0.0
        self.tell()

    def tell(self):
        bundle = None if self.runs == FACTORY else self.runs
        event = Runs(
            engine=self.engine,
            bundle=bundle,
            source="factory" if bundle is None else "active",
            model=self.identity,
        )
        self.world.updater.on_engine_event(event)

    def swap(self, ref):
        if self.runs is None:
            return Refused(code="E_CRASH", message="no worker", is_final=False)
        if self.late:
            return Refused(code="E_SYSTEM", message="busy", is_final=False)
        if ref is not None and ref.sha256 not in self.world.disk.stored - self.world.disk.damaged:
            return Refused(code="E_SELFTEST", message="damaged")
        self.world.note_load(self.engine, ref)
        kind = "good" if ref is None else self.world.known[ref.sha256].kind
        if kind == "load":
            return Refused(code="E_SELFTEST", message="no such operator")
        if kind == "crash":
            self.runs = ref.sha256
            self.down("E_CRASH", "SIGSEGV while it loads")
            return Refused(code="E_CRASH", message="gone")
        self.set(ref)
        return Succeeded(model=self.identity)

    @property
    def identity(self):
        return ModelIdentity(name=self.runs[:8], version=None, sha256="0" * 64)

    def give_up(self, ref):
        """Nobody listens any more, and it goes on."""
        if self.runs is not None and not self.late:
            self.late.append(ref)
            self.world.late_swaps += 1

    def go_back(self):
        if self.before is None:  # nothing is held: it ends
            self.down("E_FRAME", "its decoder raised")
            return
        self.world.updater.on_engine_event(
            Down(engine=self.engine, code="E_FRAME", reason="its decoder raised", is_native=True)
        )
        self.runs, self.before, self.age_s = self.before, None, 0.0
        self.tell()

    def end(self):
        self.runs, self.before, self.start_in_s, self.age_s = None, None, 2.0, 0.0
        self.late.clear()

    def down(self, code, reason, *, is_native=True):
        if is_native:
            self.world.note_death(self.engine, self.runs)
        self.end()
        self.world.updater.on_engine_event(
            Down(engine=self.engine, code=code, reason=reason, is_native=is_native)
        )


def check_monotone(before: State, after: State):
    """Floors, counters and releases never go down."""
    for name in ("timestamp_version", "targets_version", "time", "root_version"):
        assert getattr(after.floors, name) >= getattr(before.floors, name)
    for name, floor in before.releases.items():
        assert after.releases[name].security_floor >= floor.security_floor
        assert after.releases[name].release_counter >= floor.release_counter
    for name, counter in before.counters.items():
        assert after.counters[name] >= counter
