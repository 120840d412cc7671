"""Store, state and loader in the order in which the updater uses them, with nothing in between.

What it is told by steps in the real updater (the network, the trial, the probation) is settled
beforehand, so that a run has the same file operations each time, and each may be the last.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace
from ota.plain_bundle import Plain, plain_bundle, unpack_plain

from agent.contract.updates import Desired
from agent.ota.disk import Disk, RealDisk
from agent.ota.loader import Choice, choose
from agent.ota.refusal import RefusalError
from agent.ota.rules import ENDS, decide, follow, kept, phase_of, resume, take_up
from agent.ota.slots import Slots
from agent.ota.state import Order, State
from agent.ota.store import Store

STATE_DIR = Path("/state")
FACTORY = Path("/factory")
BUNDLES = {f"1.{at}": plain_bundle(at, floor=max(0, at - 2)) for at in range(1, 7)}
BAD = {"1.3"}  # passes its trial and fails its probation
ROLLBACK = ""
# What operators say, one after the other.
ORDERS = ("1.1", "1.2", "1.3", ROLLBACK, "1.4")
# What runs when all of them were carried out: active, previous.
AFTER = {
    "1.1": ("1.1", None),
    "1.2": ("1.2", "1.1"),
    "1.3": ("1.2", "1.1"),
    ROLLBACK: ("1.1", None),
    "1.4": ("1.4", "1.1"),
}
FACTORY_MODEL = b"factory" * 100


def order(number: int, version: str) -> Desired:
    """Return the order of a number: a version to run, or one step back."""
    action = "run" if version else "rollback"
    name = "cats" if version else None
    return Desired(
        deployment_id=f"d{number}",
        counter=number,
        action=action,
        name=name,
        version=version or None,
    )


def ready_made(disk: Disk, state_dir: Path = STATE_DIR, factory: Path = FACTORY) -> None:
    """Put a factory's model and a state folder on an empty disk."""
    for folder in (state_dir, factory):
        disk.make_folder(folder)
    entry = {"sha256": hashlib.sha256(FACTORY_MODEL).hexdigest(), "size": len(FACTORY_MODEL)}
    manifest = json.dumps({"name": "factory", "files": {"model.tflite": entry}}).encode()
    for name, content in (("manifest.json", manifest), ("model.tflite", FACTORY_MODEL)):
        sink = disk.sink(factory / name, "new")
        sink.write(content)
        sink.sync()
        sink.close()
    disk.sync_folder(factory)
    disk.sync_folder(factory.parent)


@dataclass
class Promises:
    """What was promised to be kept, and what was about to be."""

    kept: State = field(default_factory=State)
    tried: State | None = None


class Board:
    """One start of the program on a disk."""

    def __init__(
        self,
        disk: Disk,
        *,
        state_dir: Path = STATE_DIR,
        factory: Path | None = FACTORY,
        bundles: dict[str, Plain] = BUNDLES,
        promises: Promises | None = None,
    ) -> None:
        self.disk = disk
        self.state_dir = state_dir
        self.slots = Slots(state_dir / "update", disk)
        self.store = Store(state_dir / "models", disk, unpack_plain)
        self._factory = factory
        self._bundles = bundles
        self.state = self.slots.read()
        self.promises = promises or Promises(kept=self.state)

    def choose(self) -> Choice:
        """Return what the worker would be started with."""
        return choose(self.state, self.store, "", self._factory, disk=self.disk)

    def run(self, orders: tuple[str, ...] = ORDERS) -> None:
        """Start, and carry out what was not; the last order is the one that is retained."""
        if self.state.deployment is not None:
            self._write(resume(self.state))
            self._go_on()
        for number, version in enumerate(orders, 1):
            if number > self.state.counters.get("", 0):
                self._write(
                    take_up(self.state, Order(desired=order(number, version), scope="device"))
                )
                self._go_on()

    def _write(self, state: State) -> None:
        if state == self.state:
            return
        self.promises.tried = state
        self.state = self.slots.write(state)
        self.promises.kept, self.promises.tried = self.state, None

    def _go_on(self) -> None:
        while (phase := phase_of(self.state)) not in ENDS:
            try:
                self._write(getattr(self, f"_{phase}")())
            except RefusalError as error:
                said = {"code": error.code, "message": str(error)}
                self._write(follow(self.state, "refused", **said))
        staged = () if phase_of(self.state) in ENDS else (self._ref().sha256,)
        self.store.collect(kept(self.state), staged)

    def _ref(self):
        return self.state.deployment.candidate

    def _accepted(self) -> State:
        return decide(self.state)

    def _metadata(self) -> State:
        desired = self.state.deployment.order.desired
        bundle = self._bundles[desired.version]
        floors = replace(
            self.state.floors, timestamp_version=desired.counter, time=desired.counter * 10.0
        )
        found = {"candidate": bundle.ref, "is_resolved": True, "size": len(bundle.data)}
        return follow(_with(replace(self.state, floors=floors), **found), "done")

    def _downloading(self) -> State:
        ref, data = self._ref(), self._bundles[self._ref().version].data
        self.store.require_space(len(data))
        try:
            part = self.store.part(ref.sha256)
            there = self.disk.size(part) or 0
            sink = self.disk.sink(part, "append")
            try:
                for at in range(min(there, len(data)), len(data), 5000):
                    sink.write(data[at : at + 5000])
                sink.sync()
            finally:
                sink.close()
        except OSError as error:
            raise RefusalError("E_SPACE", str(error)) from error
        return follow(self.state, "done")

    def _verify(self) -> State:
        known = self.store.known(self._ref().sha256)
        try:
            found = self.store.put(self.store.part(self._ref().sha256), self._ref())
        except RefusalError as refusal:
            if refusal.code == "E_HASH" and not refusal.is_final:
                return follow(self.state, "damaged")
            raise
        action = self.state.deployment.order.desired.action
        event = "proven" if known is not None and action == "rollback" else "done"
        return follow(_with(self.state, candidate=found), event)

    def _selftest(self) -> State:
        self.store.verify(self._ref())
        return follow(self.state, "done")

    def _shadow(self) -> State:
        return follow(self.state, "done")

    def _trial(self) -> State:
        ref, choice = self._ref(), self.choose()
        wanted = ("candidate", "factory") if ref is None else ("candidate",)
        if choice.source not in wanted:
            return follow(self.state, "failed", code="E_HASH", message=str(choice.why))
        return follow(self.state, "done")

    def _probation(self) -> State:
        ref = self._ref()
        if ref is not None and ref.version in BAD:
            return follow(self.state, "failed", code="E_FRAME", message="sees dogs")
        return follow(self.state, "passed")


def _with(state: State, **found) -> State:
    return replace(state, deployment=replace(state.deployment, **found))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    ready_made(RealDisk(), place / "state", place / "factory")
    Board(RealDisk(), state_dir=place / "state", factory=place / "factory").run(ORDERS[:1])
