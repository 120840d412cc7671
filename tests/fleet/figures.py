"""What a rollout to many boards takes: `python tests/fleet/figures.py [BOARDS]`.

Boards in one process, each with the real updater on a made-up board whose time goes faster,
mosquitto in another, `edge-agent fleet` in a third. What the broker does is counted by the broker
itself ($SYS) and by the kernel (its processor time).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent), str(PROJECT)]

from brokers import RunningBroker, mosquitto  # noqa: E402

from agent.config import MqttConfig  # noqa: E402
from agent.operator.exchange import Exchange  # noqa: E402

TIMES = 40.0  # faster than outside: a probation of 60 s takes 1.5 s
TELEMETRY_S = 3.0
COUNTERS = {
    "received": "$SYS/broker/messages/received",
    "sent": "$SYS/broker/messages/sent",
    "bytes_received": "$SYS/broker/bytes/received",
    "bytes_sent": "$SYS/broker/bytes/sent",
    "dropped": "$SYS/broker/publish/messages/dropped",
}
# What is done, and its exit code.
STEPS = (
    ("a bad bundle: refused by the self-test", "door@2.0-golden", 1),
    ("a bad bundle: 10 % of the boards go back", "door@2.1-crash10", 1),
    ("a good bundle", "door@2.2", 0),
)


def counters(broker: RunningBroker) -> dict[str, float]:
    """Return the broker's own counts, once they are of now."""
    time.sleep(2.1)  # sys_interval is 1 s
    by_topic = {COUNTERS["dropped"]: 0}  # told only once it is another number
    settings = MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}")
    with Exchange(settings, list(COUNTERS.values())) as exchange:
        while len(by_topic) < len(COUNTERS):
            by_topic |= {one.topic: int(one.payload) for one in exchange.drain(1.0)}
    process = psutil.Process(broker.process.pid)
    times = process.cpu_times()
    return {name: by_topic[topic] for name, topic in COUNTERS.items()} | {
        "cpu_s": times.user + times.system,
        "rss_mib": process.memory_info().rss / 2**20,
    }


def fleet(broker: RunningBroker, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", "fleet", *arguments, "--json"]
    return subprocess.run(
        [*command, "--broker", f"mqtt://127.0.0.1:{broker.port}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def measure(
    count: int,
    folder: Path,
    *,
    times: float = TIMES,
    pace: float = 20.0,
    counted: bool = True,
    telemetry_s: float = TELEMETRY_S,
) -> list[dict[str, object]]:
    """Return what each step took.

    times: how much faster than outside the boards' time goes; pace: boards asked a second
    counted: with what the broker had to do; telemetry_s: between two of a board
    """
    # As systemd/mosquitto has it. mosquitto's own limit of 1000 queued messages is too few here.
    broker = mosquitto(
        folder, "allow_anonymous true", "sys_interval 1", "max_queued_messages 100000"
    ).start()
    simulated = [sys.executable, str(HERE / "simulated.py"), "--port", str(broker.port)]
    boards = subprocess.Popen(
        [
            *simulated,
            "--boards",
            str(count),
            "--updater",
            str(times),
            "--telemetry",
            str(telemetry_s),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{PROJECT}:{HERE.parent}"},
        text=True,
    )
    try:
        assert boards.stdout.readline() == "ready\n"
        step = Step(broker, folder, pace, counted)
        return [step.rollout(what, model, code) for what, model, code in STEPS] + [step.list()]
    finally:
        boards.terminate()
        boards.communicate()
        broker.stop()


class Step:
    """Runs a command and counts what the broker had to do for it."""

    def __init__(self, broker: RunningBroker, folder: Path, pace: float, counted: bool) -> None:
        self._broker, self._folder, self._pace, self._counts = broker, folder, pace, counted
        self._before = counters(broker) if counted else {}

    def rollout(self, what: str, model: str, code: int) -> dict[str, object]:
        state, began = str(self._folder / "rollouts"), time.monotonic()
        done = fleet(
            self._broker, "rollout", model, "--all", "--state", state, "--pace", str(self._pace)
        )
        took_s = time.monotonic() - began
        assert done.returncode == code, done.stderr
        said = json.loads(done.stdout)
        results = [one["result"] for one in said["boards"]]
        return {
            "what": what,
            "state": said["state"],
            "boards": len(results),
            "asked": len(results) - results.count("planned"),
            "done": results.count("done"),
            "failed": results.count("failed") + results.count("silent"),
            "rollout_s": round(said["ended_at"] - said["started_at"], 1),
            "command_s": round(took_s, 1),
            "orders": said["messages_sent"],
            "heard": said["messages_received"],
            **self._counted(took_s),
        }

    def list(self) -> dict[str, object]:
        began = time.monotonic()
        done = fleet(self._broker, "list")
        took_s = time.monotonic() - began
        rows = json.loads(done.stdout)
        return {
            "what": "fleet list, with telemetry",
            "boards": len(rows),
            "done": sum(row["latency_p99_ms"] is not None for row in rows),
            "command_s": round(took_s, 1),
            "versions": sorted({row["model"]["version"] for row in rows}),
            **self._counted(took_s),
        }

    def _counted(self, took_s: float) -> dict[str, object]:
        if not self._counts:
            return {}
        before, self._before = self._before, counters(self._broker)
        return _difference(before, self._before, took_s)


def _difference(
    before: dict[str, float], after: dict[str, float], took_s: float
) -> dict[str, object]:
    changed = {name: after[name] - before[name] for name in COUNTERS}
    return {
        "broker_received": int(changed["received"]),
        "broker_sent": int(changed["sent"]),
        "broker_kb": round((changed["bytes_received"] + changed["bytes_sent"]) / 1e3),
        "broker_dropped": int(changed["dropped"]),
        "broker_cpu_ms": round((after["cpu_s"] - before["cpu_s"]) * 1e3),
        "broker_rss_mib": round(after["rss_mib"], 1),
    }


def table(rows: list[dict[str, object]]) -> list[str]:
    """Return a table of what was measured."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    # One column for each step reads better: there are more figures than steps.
    columns = list(zip(*cells, strict=True))
    widths = [max(len(column[place]) for column in columns) for place in range(len(cells))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(column, widths, strict=True)).rstrip()
        for column in columns
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        boards = int(sys.argv[1]) if len(sys.argv) > 1 else 200
        print("\n".join(table(measure(boards, Path(name)))))
