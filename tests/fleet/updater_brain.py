"""The real updater as a board's brain: its rules, its orders, its reports; the rest is made up.

What it asks of network, disk and workers is played by `ota.update_world`, in which time is a
number: here it runs faster than outside.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec.structs import replace
from ota.update_world import FACTORY, World, model

from agent.contract.payloads import ModelIdentity
from agent.contract.updates import Desired

# What a version's name says of it, and what the made-up world calls that.
KINDS = {"golden": "selftest", "crash": "crash_later", "slow": "slow", "load": "load"}
TICK_S = 0.25
PROBATION_S = 60.0


class UpdaterBrain:
    """See `simulated.Brain`; `times`: how much faster than outside time goes."""

    def __init__(self, device: str, times: float = 20.0) -> None:
        self.device = device
        self._times = times
        self._at: float | None = None
        self._world = World(probation_s=PROBATION_S)
        self._world.turn(2.0)  # its worker is up

    def on_desired(self, raw, scope, now):
        del now
        if raw:
            desired = msgspec.json.decode(raw, type=Desired)
            if desired.action == "run":
                self._publish(desired)
        self._world.updater.on_desired(raw, scope)

    def _publish(self, desired: Desired) -> None:
        """Have the repository hold what is asked for: `2.1-crash10`: bad on 10 % of the boards."""
        number, _, kind = desired.version.partition("-")
        share = int("".join(filter(str.isdigit, kind)) or 100)
        is_bad = hashlib.sha256(self.device.encode()).digest()[0] * 100 / 256 < share
        found = KINDS.get(kind.rstrip("0123456789"), "good") if is_bad else "good"
        counter = round(float(number) * 100)
        self._world.publish(model(desired.version, found, name=desired.name, counter=counter))

    def check(self, now):
        passed = 0.0 if self._at is None else now - self._at
        self._at = now
        seconds = passed * self._times
        while seconds > 0:
            step = min(1.0, seconds)
            self._world.turn(step)
            seconds -= step
        return TICK_S

    def reported(self):
        said, (name, version) = self._world.report, self.runs
        digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
        runs = ModelIdentity(name=name, version=version, sha256=digest)
        # Of the made-up counts only some are told, as a board does not tell every byte.
        return replace(said, device=self.device, model=runs, progress=None, bytes_done=None)

    @property
    def runs(self) -> tuple[str, str]:
        """What its worker runs."""
        runs = self._world.workers[""].runs
        if runs in (None, FACTORY):
            return "door", "1.0.0"
        ref = self._world.known[runs].ref
        return ref.name, ref.version

    @property
    def taken_up(self) -> int:
        """How many orders it took up; at least one is all that is known."""
        return int(self._world.updater.state.deployment is not None)

    @property
    def newest_committed(self) -> int:
        """The highest release counter that has passed its probation here."""
        return self._world.updater.state.release("door").release_counter
