"""One measured run of the daemon: a clip, a real broker, and a subscriber with its own clock."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import psutil
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.contract.payloads import Result
from agent.demo.broker import HOST, start_broker
from agent.demo.children import Child, Children, Signals
from agent.errors import AgentError

FIRST_RESULT_WITHIN_S = 60.0
SETTLE_S = 1.5
MIB = 1 << 20


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


def run_session(
    model: str, clip: str, *, seconds: float, realtime: bool, children: Children
) -> Session:
    """Start broker and daemon, let it settle, measure for `seconds`, stop it."""
    broker = start_broker(children)
    arrivals: list[tuple[float, bytes]] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: arrivals.append(
        (time.time(), bytes(message.payload))
    )
    client.connect(HOST, broker.port)
    client.subscribe("edge/bench/camera/clip/detections", qos=1)
    client.loop_start()
    config = children.folder / "bench.toml"
    config.write_text(_config(model, clip, broker.port, realtime=realtime), encoding="utf-8")
    started = time.time()
    daemon = children.start(
        "daemon", [sys.executable, "-m", "agent", "run", "--config", str(config)]
    )
    try:
        _wait_for_first(arrivals, daemon, children.signals)
        first_s = arrivals[0][0] - started
        children.signals.sleep(SETTLE_S)
        control = psutil.Process(daemon.process.pid)
        processes = [control, *control.children()]
        cpu_before, count_before, began = _cpu_s(processes), len(arrivals), time.time()
        children.signals.sleep(seconds)
        cpu_s, measured = _cpu_s(processes) - cpu_before, arrivals[count_before:]
        elapsed = time.time() - began
        pss = sum(process.memory_full_info().pss for process in processes) / MIB
    finally:
        children.end(daemon)
        client.disconnect()
        client.loop_stop()
        children.end(broker.child)
    return _summary(measured, elapsed, first_s, cpu_s, pss)


def _config(model: str, clip: str, port: int, *, realtime: bool) -> str:
    quoted = {key: json.dumps(value) for key, value in (("model", model), ("clip", clip))}
    return f"""
[device]
id = "bench"
[model]
path = {quoted["model"]}
[[camera]]
name = "clip"
source = {quoted["clip"]}
loop = true
realtime = {str(realtime).lower()}
fps = {30.0 if realtime else 0.0}
[mqtt]
url = "mqtt://{HOST}:{port}"
"""


def _wait_for_first(arrivals: list[tuple[float, bytes]], daemon: Child, signals: Signals) -> None:
    deadline = time.monotonic() + FIRST_RESULT_WITHIN_S
    while not arrivals:
        if daemon.process.poll() is not None or time.monotonic() > deadline:
            raise AgentError("the daemon gave no result; it said: " + " | ".join(daemon.tail(5)))
        signals.sleep(0.005)


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def _summary(
    measured: list[tuple[float, bytes]], elapsed: float, first_s: float, cpu_s: float, pss: float
) -> Session:
    decode = msgspec.json.Decoder(Result).decode
    results = [(at, decode(payload)) for at, payload in measured]
    latencies = sorted((at - result.captured_at) * 1e3 for at, result in results)
    stages = [msgspec.structs.asdict(result.stage_ms) for _, result in results]
    return Session(
        first_result_s=first_s,
        results_per_s=len(results) / elapsed,
        latency_p50_ms=statistics.median(latencies),
        latency_p99_ms=latencies[int(len(latencies) * 0.99)],
        stage_p50_ms={key: statistics.median(s[key] for s in stages) for key in stages[0]},
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
