"""Many boards in one process: each has a connection, a last will, retained topics and a brain.

What a board does with an order is its brain's business: `RuleBrain` here plays the phases by rule;
anything with the same three methods may take its place, such as the real updater. One thread
serves all sockets. Also a program: `python simulated.py --port P --boards 200`.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import random
import selectors
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.contract.payloads import Accelerator, Board, ModelIdentity, Status
from agent.contract.reading import Power
from agent.contract.telemetry import (
    CameraTelemetry,
    EnergyTelemetry,
    MqttTelemetry,
    OutboxTelemetry,
    Percentiles,
    SystemTelemetry,
    Telemetry,
)
from agent.contract.updates import Desired, Floors, IgnoredOrder, Phase, Reported

Scope = Literal["device", "group"]
KINDS = ("Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi 4 Model B Rev 1.4", "Jetson Orin Nano")
MISC_EVERY_S = 0.5
KEEPALIVE_S = 60


class Brain(Protocol):
    """Decides what a board runs; all times are of one monotonic clock, in seconds."""

    def on_desired(self, raw: bytes, scope: Scope, now: float) -> None:
        """Take an order."""

    def check(self, now: float) -> float:
        """Do what is due; return in how many seconds to be asked again."""

    def reported(self) -> Reported:
        """Return what `model/reported` is to say; published when it is another one."""


# How an order ends: the phase in which, and then as what, with which code.
Ending = tuple[Phase, Literal["refused", "rolled_back"], str]
Rule = Callable[[str, Desired], "Ending | None"]
PHASES: tuple[Phase, ...] = (
    "accepted",
    "metadata",
    "downloading",
    "verify",
    "selftest",
    "shadow",
    "trial",
    "probation",
)


def by_version(device: str, desired: Desired) -> Ending | None:
    """End as the version says: `1.0-golden`, `1.0-crash`, `1.0-crash30` on 30 % of the boards."""
    kind = (desired.version or "").partition("-")[2]
    share = int("".join(filter(str.isdigit, kind)) or 100)
    if hashlib.sha256(device.encode()).digest()[0] * 100 / 256 >= share:
        return None
    endings: dict[str, Ending] = {
        "golden": ("selftest", "refused", "E_GOLDEN"),
        "budget": ("selftest", "refused", "E_BUDGET"),
        "crash": ("trial", "rolled_back", "E_CRASH"),
        "slow": ("probation", "rolled_back", "E_BUDGET"),
        "hang": ("downloading", "refused", ""),  # says nothing any more
    }
    return endings.get(kind.rstrip("0123456789"))


@dataclass
class RuleBrain:
    """Accepts every newer order and goes through the phases, some of them badly, by rule."""

    device: str
    rule: Rule = by_version
    phase_s: float = 0.1
    runs: tuple[str, str] = ("door", "1.0.0")
    previous: tuple[str, str] | None = None
    order: Desired | None = None
    phase: Phase = "idle"
    code: str | None = None
    pinned: bool = False
    ignored: IgnoredOrder | None = None
    taken_up: int = 0
    _due: float = float("inf")
    _chance: random.Random = field(default_factory=random.Random)

    def on_desired(self, raw, scope, now):
        if not raw or (self.pinned and scope == "group"):
            return
        desired = msgspec.json.decode(raw, type=Desired)
        counter = self.order.counter if self.order else 0
        if desired == self.order:
            return
        if desired.counter <= counter:
            self.ignored = IgnoredOrder(
                code="E_REPLAY", message="older", deployment_id=desired.deployment_id, at=now
            )
            return
        self.order, self.phase, self.code = desired, "accepted", None
        self.taken_up += 1
        if scope == "device":
            self.pinned = desired.pinned
        if desired.action == "run" and (desired.name, desired.version) == self.runs:
            self.phase, self._due = "committed", float("inf")
            return
        self._due = now + self._step()

    def check(self, now):
        if now >= self._due:
            self._go_on(now)
        return self._due - now

    def hurry(self) -> None:
        """Wait no longer, now and from now on."""
        self.phase_s = 0.02
        if self._due != float("inf"):
            self._due = 0.0

    def _step(self) -> float:
        return self.phase_s * self._chance.uniform(0.5, 1.5)

    def _go_on(self, now) -> None:
        ending = self.rule(self.device, self.order)
        if ending is not None and ending[0] == self.phase:
            self._due = float("inf")
            if ending[2]:
                _, self.phase, self.code = ending
            return
        if self.phase == "probation":
            self._commit()
            return
        self.phase = PHASES[PHASES.index(self.phase) + 1]
        self._due = now + self._step()

    def _commit(self) -> None:
        self.phase, self._due = "committed", float("inf")
        if self.order.action == "run":
            self.previous, self.runs = self.runs, (self.order.name, self.order.version)
        elif self.order.name and (self.order.name, self.order.version) != self.runs:
            return  # "leave this one", and it does not run
        elif self.previous is not None:
            self.previous, self.runs = None, self.previous

    def reported(self):
        name, version = self.runs
        return Reported(
            device=self.device,
            boot_id="0" * 32,
            at=time.time(),
            engine="",
            deployment_id=self.order.deployment_id if self.order else None,
            phase=self.phase,
            code=self.code,
            message=f"by rule: {self.code}" if self.code else None,
            progress=None,
            model=model_of(name, version),
            release_counter=1,
            source="active",
            candidate=None,
            previous="@".join(self.previous) if self.previous else None,
            attempts=0,
            bytes_done=None,
            bytes_total=None,
            p95_ms=None,
            rss_mib=None,
            agreement=None,
            clock_trusted=True,
            floors=Floors(),
            ignored=self.ignored,
        )


def model_of(name: str, version: str) -> ModelIdentity:
    digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    return ModelIdentity(name=name, version=version, sha256=digest)


class SimulatedBoard:
    """A connection to the broker with a brain behind it."""

    def __init__(self, fleet: SimulatedFleet, device: str, kind: str, groups: tuple[str, ...]):
        self.device, self.kind, self.groups = device, kind, groups
        self.brain: Brain = fleet.make_brain(device)
        self._fleet = fleet
        self._said: tuple[object, ...] = ()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=device, protocol=mqtt.MQTTv5
        )
        if fleet.password:
            self.client.username_pw_set(device, fleet.password)
        self.client.will_set(self.topic("availability"), b"offline", 1, retain=True)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message

    def topic(self, tail: str) -> str:
        return f"{self._fleet.prefix}/{self.device}/{tail}"

    def publish(self, tail: str, payload: bytes, *, retain: bool = True) -> None:
        self.client.publish(self.topic(tail), payload, 1, retain)
        self._fleet.published += 1

    def _on_connect(self, client, *_):
        groups = [(f"{self._fleet.prefix}/group/{name}/model/desired", 1) for name in self.groups]
        client.subscribe([(self.topic("model/desired"), 1), *groups])
        self.publish("availability", b"online")
        self.publish("status", msgspec.json.encode(self._status()))
        self._said = ()
        self.report()

    def _on_message(self, _client, _data, message):
        scope = "group" if "/group/" in message.topic else "device"
        now = time.monotonic()
        self.brain.on_desired(bytes(message.payload), scope, now)
        self._fleet.wake(self, now)

    def report(self) -> None:
        reported = self.brain.reported()
        said = msgspec.structs.astuple(msgspec.structs.replace(reported, at=0.0))
        if said != self._said:
            self._said = said
            self.publish("model/reported", msgspec.json.encode(reported))

    def tell(self) -> None:
        self.publish("telemetry", msgspec.json.encode(self._telemetry()), retain=False)

    def _status(self) -> Status:
        return Status(
            device=self.device,
            boot_id="0" * 32,
            agent_version="0.1.0",
            started_at=time.time(),
            board=Board(model=self.kind, machine="aarch64", python="3.11", runtime="litert"),
            groups=self.groups,
            model=self.brain.reported().model,
            task="detection",
            accelerator=Accelerator(wanted="auto", used="cpu:xnnpack", reason=None),
            engines=[],
            cameras=[],
            health=[],
            clock_synced=True,
        )

    def _telemetry(self) -> Telemetry:
        nothing = dict.fromkeys(SystemTelemetry.__struct_fields__)
        total = Percentiles(count=300, p50=11.0, p90=14.0, p99=18.5, p999=21.0, max=22.0)
        return Telemetry(
            device=self.device,
            boot_id="0" * 32,
            seq=1,
            at=time.time(),
            clock_synced=True,
            uptime_s=1.0,
            interval_s=10.0,
            agent_version="0.1.0",
            relative_error=0.01,
            times_lost=0,
            cameras={
                "door": CameraTelemetry(
                    captured=300,
                    dropped=0,
                    still=0,
                    processed=300,
                    fps_in=30.0,
                    fps_out=30.0,
                    latency_ms={"total": total},
                )
            },
            engines=[],
            power=Power(
                kind="measured",
                scope="board_input",
                total_w=4.25,
                rails={},
                in_total=[],
                excluded_from_total=[],
                sensor="made up",
                reason=None,
            ),
            estimate=None,
            energy=EnergyTelemetry(
                valid=False,
                why_invalid="made up",
                source=None,
                scope="none",
                window_s=None,
                mean_w=None,
                gross_j=None,
                idle_w=None,
                net_j=None,
                inferences=0,
                gross_mj_per_inference=None,
                net_mj_per_inference=None,
                samples=0,
                largest_gap_s=None,
                coverage=None,
            ),
            temps_c={},
            temps_unreadable=[],
            throttle=None,
            clocks_hz=None,
            fan=None,
            accel=None,
            sampler_cpu_ms=None,
            processes={},
            system=SystemTelemetry(**nothing),
            worker_restarts=0,
            outbox=OutboxTelemetry(
                waiting=0, waiting_mib=0.0, on_disk=0, on_disk_mib=0.0, published=0, dropped=0
            ),
            mqtt=MqttTelemetry(protocol="5", reconnects=0),
        )


class SimulatedFleet:
    """All boards, served by the one thread that calls `run`."""

    def __init__(
        self,
        port: int,
        count: int,
        *,
        make_brain: Callable[[str], Brain] = RuleBrain,
        groups: tuple[str, ...] = ("porches",),
        prefix: str = "edge",
        telemetry_s: float = 10.0,
        password: str = "",
    ) -> None:
        self.prefix = prefix
        self.password = password  # each board's own name is its user
        self.make_brain = make_brain
        self.published = 0
        self._port = port
        self._telemetry_s = telemetry_s
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, SimulatedBoard]] = []
        self.boards = [
            SimulatedBoard(self, f"board-{number:03}", KINDS[number % len(KINDS)], groups)
            for number in range(count)
        ]
        self._numbers = {board.device: number for number, board in enumerate(self.boards)}
        self._stopping = threading.Event()
        self._wanted: list[tuple[str, SimulatedBoard]] = []
        self._connected: dict[SimulatedBoard, int] = {}
        self._away: set[str] = set()

    def wake(self, board: SimulatedBoard, at: float) -> None:
        """Have a board's brain asked at a time."""
        if at != float("inf"):
            heapq.heappush(self._due, (at, self._numbers[board.device], board))

    def ask(self, what: Literal["go", "come", "hurry"], device: str) -> None:
        """Have a board vanish without a word, come back, or (`RuleBrain`) end a long phase now."""
        self._wanted.append((what, self.boards[self._numbers[device]]))

    def brain(self, device: str) -> Brain:
        return self.boards[self._numbers[device]].brain

    def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Serve until `stop`."""
        for board in self.boards:
            self._connect(board)
        misc_at, is_ready = 0.0, False
        while not self._stopping.is_set():
            now = time.monotonic()
            self._obey()
            wait = min(0.1, max(0.0, (self._due[0][0] if self._due else now + 1) - now))
            for key, _ in self._selector.select(wait):
                key.data.client.loop_read()
            self._think(time.monotonic())
            if now - misc_at > MISC_EVERY_S:
                misc_at = now
                self._reconnect()
            self._write()
            self._tell(now)
            if not is_ready and all(board.client.is_connected() for board in self.boards):
                is_ready = True
                self._due += [(now, *one) for one in enumerate(self.boards)]
                on_ready()
        for board in list(self._connected):
            board.client.disconnect()
        self._write()

    def _write(self) -> None:
        for board in list(self._connected):
            if board.client.want_write():
                board.client.loop_write()

    def stop(self) -> None:
        """End `run`; from any thread."""
        self._stopping.set()

    def _connect(self, board: SimulatedBoard) -> None:
        # paho sends again what was not acknowledged, and behind what `_on_connect` says: states of
        # before would replace those of now. The daemon keeps no states but the newest.
        board.client._out_messages.clear()
        try:
            board.client.connect("127.0.0.1", self._port, KEEPALIVE_S)
        except OSError:
            return
        sock = board.client.socket()
        self._connected[board] = sock.fileno()
        self._selector.register(sock.fileno(), selectors.EVENT_READ, board)

    def _drop(self, board: SimulatedBoard) -> None:
        descriptor = self._connected.pop(board, None)
        if descriptor is not None:
            self._selector.unregister(descriptor)

    def _reconnect(self) -> None:
        for board, descriptor in list(self._connected.items()):
            board.client.loop_misc()
            sock = board.client.socket()
            if sock is None or sock.fileno() != descriptor:
                self._drop(board)
        for board in self.boards:
            if board not in self._connected and board.device not in self._away:
                self._connect(board)

    def _obey(self) -> None:
        while self._wanted:
            what, board = self._wanted.pop(0)
            if what == "come":
                self._away.discard(board.device)
                continue  # it connects by itself
            if what == "hurry":
                board.brain.hurry()
                self.wake(board, time.monotonic())
                continue
            self._away.add(board.device)
            sock = board.client.socket()
            self._drop(board)
            if sock is not None:
                sock.close()  # no DISCONNECT: the broker publishes the last will

    def _think(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, _, board = heapq.heappop(self._due)
            self.wake(board, now + board.brain.check(now))  # boards go on without a broker
            if board in self._connected:
                board.report()

    def _tell(self, now: float) -> None:
        for number, board in enumerate(self.boards):
            at = number / len(self.boards) * self._telemetry_s
            slot = (now - at) // self._telemetry_s
            if board in self._connected and getattr(board, "slot", None) != slot:
                board.slot = slot
                board.tell()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--boards", type=int, default=200)
    parser.add_argument("--phase", type=float, default=0.1, help="seconds of each phase, about")
    parser.add_argument("--telemetry", type=float, default=10.0)
    parser.add_argument("--updater", type=float, metavar="TIMES", help="the real one, so fast")
    arguments = parser.parse_args()

    def make_brain(device: str) -> Brain:
        if arguments.updater:
            from updater_brain import UpdaterBrain

            return UpdaterBrain(device, arguments.updater)
        return RuleBrain(device, phase_s=arguments.phase)

    fleet = SimulatedFleet(
        arguments.port,
        arguments.boards,
        make_brain=make_brain,
        telemetry_s=arguments.telemetry,
    )
    try:
        fleet.run(lambda: print("ready", flush=True))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
