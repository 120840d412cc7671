"""One measured run of the daemon: clips, a real broker, and a subscriber with its own clock."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import psutil
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.contract.payloads import Result, Status
from agent.demo.broker import HOST, start_broker
from agent.demo.children import Child, Children, Signals
from agent.errors import AgentError

FIRST_RESULT_WITHIN_S = 60.0
SETTLE_S = 1.5
# While it waits it looks for signals as often.
LISTEN_EVERY_S = 0.2
MIB = 1 << 20
DEVICE = "bench"
STATE_FOLDER = "state"  # of all daemons of a bench, so that a model is measured once
Arrivals = list[tuple[float, bytes]]  # Unix seconds, payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one run showed; times in ms, CPU of both processes per result."""

    first_result_s: float
    results_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    stage_p50_ms: dict[str, float]
    dropped: int
    cpu_ms: float
    pss_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came from each camera during the measured time."""

    arrivals: dict[str, Arrivals]
    elapsed_s: float
    began_s: float  # the measured time, on the monotonic clock
    ended_s: float
    first_result_s: float  # until every camera had given one
    cpu_s: float  # of the daemon and its workers
    pss_mib: float
    status: Status | None


def run_session(
    model: str, clip: str, *, seconds: float, realtime: bool, children: Children
) -> Session:
    """Start broker and daemon, let it settle, measure for `seconds`, stop it."""
    played = play(
        lambda port: config_of_clip(
            model, clip, port, children.folder, fps=30.0 if realtime else 0.0
        ),
        ["clip"],
        seconds=seconds,
        children=children,
    )
    return _summary(
        played.arrivals["clip"],
        played.elapsed_s,
        played.first_result_s,
        played.cpu_s,
        played.pss_mib,
    )


def play(
    configure: Callable[[int], str], cameras: Sequence[str], *, seconds: float, children: Children
) -> Played:
    """Run the daemon with the configuration for a broker's port; measure once all have begun.

    Raises:
        AgentError: a camera gives no result, with the daemon's last words.
    """
    broker = start_broker(children)
    arrivals: dict[str, Arrivals] = {name: [] for name in cameras}
    statuses: list[bytes] = []

    def take(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        at, topic = time.time(), message.topic.split("/")
        if topic[-1] == "detections":
            arrivals[topic[-2]].append((at, bytes(message.payload)))
        else:
            statuses.append(bytes(message.payload))

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = take
    client.connect(HOST, broker.port)
    topics = [f"edge/{DEVICE}/camera/{name}/detections" for name in cameras]
    client.subscribe([(topic, 1) for topic in (*topics, f"edge/{DEVICE}/status")])
    client.loop_start()
    config = children.folder / "bench.toml"
    config.write_text(configure(broker.port), encoding="utf-8")
    started = time.time()
    daemon = children.start(
        "daemon", [sys.executable, "-m", "agent", "run", "--config", str(config)]
    )
    try:
        _wait_for_first(arrivals, daemon, children.signals)
        first_s = max(there[0][0] for there in arrivals.values()) - started
        children.signals.sleep(SETTLE_S)
        control = psutil.Process(daemon.process.pid)
        processes = [control, *control.children()]
        cpu_before, began, began_s = _cpu_s(processes), time.time(), time.monotonic()
        before = {name: len(there) for name, there in arrivals.items()}
        wait(children.signals, seconds)
        measured = {name: there[before[name] :] for name, there in arrivals.items()}
        elapsed, ended_s = time.time() - began, time.monotonic()
        cpu_s = _cpu_s(processes) - cpu_before
        pss = sum(process.memory_full_info().pss for process in processes) / MIB
    finally:
        children.end(daemon)
        client.disconnect()
        client.loop_stop()
        children.end(broker.child)
    return Played(
        arrivals=measured,
        elapsed_s=elapsed,
        began_s=began_s,
        ended_s=ended_s,
        first_result_s=first_s,
        cpu_s=cpu_s,
        pss_mib=pss,
        status=_last_status(statuses),
    )


def wait(signals: Signals, seconds: float) -> None:
    """Sleep; a signal ends it within LISTEN_EVERY_S.

    Raises:
        Interrupted: a signal came.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        signals.sleep(min(LISTEN_EVERY_S, left))


def _last_status(payloads: list[bytes]) -> Status | None:
    """Return what the daemon said of itself last, while it still ran its cameras."""
    decode = msgspec.json.Decoder(Status).decode
    known = [decode(payload) for payload in payloads]
    return next((one for one in reversed(known) if one.engines), known[-1] if known else None)


def config_of_clip(model: str, clip: str, port: int, folder: Path, *, fps: float) -> str:
    """Return the configuration of one camera that plays a clip, `fps` 0: as fast as it can."""
    values = {"model": model, "clip": clip, "state": str(folder / STATE_FOLDER)}
    quoted = {key: json.dumps(value) for key, value in values.items()}
    return f"""
[device]
id = "{DEVICE}"
state_dir = {quoted["state"]}
[model]
path = {quoted["model"]}
[[camera]]
name = "clip"
source = {quoted["clip"]}
loop = true
realtime = {str(fps > 0).lower()}
fps = {fps}
[mqtt]
url = "mqtt://{HOST}:{port}"
"""


def _wait_for_first(arrivals: dict[str, Arrivals], daemon: Child, signals: Signals) -> None:
    deadline = time.monotonic() + FIRST_RESULT_WITHIN_S
    while not all(arrivals.values()):
        if daemon.process.poll() is not None or time.monotonic() > deadline:
            silent = ", ".join(name for name, there in arrivals.items() if not there)
            raise AgentError(
                f"the daemon gave no result of camera {silent}; it said: "
                + " | ".join(daemon.tail(5))
            )
        signals.sleep(0.005)


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def _summary(
    measured: Arrivals, elapsed: float, first_s: float, cpu_s: float, pss: float
) -> Session:
    decode = msgspec.json.Decoder(Result).decode
    if not measured:
        raise AgentError(f"no result came within {elapsed:.1f} s; measure longer with --seconds")
    results = [(at, decode(payload)) for at, payload in measured]
    latencies = sorted((at - result.captured_at) * 1e3 for at, result in results)
    stages = [msgspec.structs.asdict(result.stage_ms) for _, result in results]
    return Session(
        first_result_s=first_s,
        results_per_s=len(results) / elapsed,
        latency_p50_ms=statistics.median(latencies),
        latency_p99_ms=latencies[int(len(latencies) * 0.99)],
        stage_p50_ms={
            # A stage that this model does not have is not in its results.
            key: statistics.median(s[key] for s in stages)
            for key, value in stages[0].items()
            if value is not msgspec.UNSET
        },
        dropped=sum(result.dropped for _, result in results),
        cpu_ms=cpu_s / len(results) * 1e3,
        pss_mib=pss,
    )


def as_document(session: Session) -> dict[str, object]:
    """Return the session for a JSON file."""
    return asdict(session)


def demo_clip() -> str:
    """Return the shipped clip."""
    return str(Path(__file__).resolve().parent.parent / "demo" / "clip.mp4")
