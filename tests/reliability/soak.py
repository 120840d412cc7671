"""Whether anything grows: memory, descriptors, threads, disk, over many results and outages."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from reliability.daemons import STARTS_WITHIN_S, Agent
from reliability.rig import Outcome, Producer, Rig
from reliability.scenario import Scenario

HOUR_S = 3600.0
HOUR_RECORDS = 30 * 3600
SAMPLES = 100
# Before this share of the run, caches and allocators fill.
WARM_UP = 0.25
# Shares of the run; the first lies in the warm-up, as it opens the outbox's files for good.
OUTAGES_AT, OUTAGE_S = (0.1, 0.4, 0.7), 3.0
DAEMON_FPS = 30.0
# What an hour may add, beyond doubt; a leak of one result's 1 KiB at 30/s would be 105 MiB.
MOST_MIB_PER_HOUR = 8.0
# What allocators take and give back without anything leaking; a run that is too short to add
# more than that at the rate above cannot tell.
NOISE_MIB = 1.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Fit:
    """A least-squares line; `slope` per second, with its standard error."""

    slope: float
    error: float

    @property
    def least(self) -> float:
        """Return the slope that is exceeded beyond reasonable doubt: two standard errors less."""
        return self.slope - 2 * self.error


def fit(times: Sequence[float], values: Sequence[float]) -> Fit:
    """Return the line through at least three points."""
    mean_t, mean_v = statistics.fmean(times), statistics.fmean(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True)) / spread
    rest = [v - mean_v - slope * (t - mean_t) for t, v in zip(times, values, strict=True)]
    error = math.sqrt(sum(r * r for r in rest) / (len(rest) - 2) / spread)
    return Fit(slope, error)


def soak(rig: Rig, _seed: int) -> Outcome:
    """The daemon in real time; outbox and link with an hour's records in the time there is."""
    outcome = Outcome()
    broker = rig.broker()
    collector = rig.collector(broker.port)
    # Under a prefix of its own: only what the producer put is compared.
    agent = Agent(rig, broker.port, fps=DAEMON_FPS, mqtt_lines='prefix = "soak"')
    producer = rig.producer(broker.port, folder=str(rig.folder / "compressed"))
    producer.wait_connected()
    deadline = time.monotonic() + STARTS_WITHIN_S
    while "worker" not in agent.processes():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the daemon has no worker after {STARTS_WITHIN_S:g} s")
        time.sleep(0.2)
    per_s = HOUR_RECORDS / rig.soak_s
    producer.produce(int(rig.soak_s * per_s), per_s)
    series = _Series(agent, producer, rig.folder)
    began = time.monotonic()
    away_until, outages = math.inf, 0
    for at in range(SAMPLES):
        time.sleep(max(0.0, began + rig.soak_s * (at + 1) / SAMPLES - time.monotonic()))
        series.sample(time.monotonic() - began)
        rig.say(f"{time.monotonic() - began:.0f} of {rig.soak_s:g} s")
        if outages < len(OUTAGES_AT) and at / SAMPLES >= OUTAGES_AT[outages]:
            outages += 1
            broker.stop()
            away_until = time.monotonic() + OUTAGE_S
        if time.monotonic() >= away_until:
            away_until = math.inf
            broker.start()
    producer.wait_drained(300)
    producer.stop()
    agent.stop()
    rig.check(collector, outcome)
    series.judge(outcome, rig.soak_s)
    return outcome


class _Series:
    """What each process held at each sample."""

    def __init__(self, agent: Agent, producer: Producer, folder: Path) -> None:
        self._processes = {
            **agent.processes(),
            "compressed": psutil.Process(producer.process.pid),
        }
        self._folders = {"control": agent.state, "compressed": folder / "compressed"}
        self._at: list[float] = []
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def sample(self, at: float) -> None:
        """Read everything once."""
        self._at.append(at)
        for name, process in self._processes.items():
            with process.oneshot():
                self._values[name, "RSS (MiB/h)"].append(process.memory_info().rss / MIB)
                self._values[name, "descriptors"].append(process.num_fds())
                self._values[name, "threads"].append(process.num_threads())
        for name, folder in self._folders.items():
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            self._values[name, "disk (MiB)"].append(size / MIB)

    def judge(self, outcome: Outcome, soak_s: float) -> None:
        """Note slopes and what grew; in the compressed process an hour is the whole run."""
        first = int(len(self._at) * WARM_UP)
        times = self._at[first:]
        for (name, what), all_values in self._values.items():
            values = all_values[first:]
            if what == "RSS (MiB/h)":
                hour_s = soak_s if name == "compressed" else HOUR_S
                line = fit(times, values)
                outcome.figures[f"{name} {what}"] = line.slope * hour_s
                outcome.figures[f"{name} {what}, ±"] = 2 * line.error * hour_s
                least = line.least * hour_s
                rise = line.slope * (times[-1] - times[0])
                outcome.expect(
                    least <= MOST_MIB_PER_HOUR or rise <= NOISE_MIB,
                    f"{name}: grows by {least:.1f} MiB in an hour at least",
                )
            elif what == "disk (MiB)":
                outcome.figures[f"{name} {what}"] = max(values)
            else:
                third = len(values) // 3
                early, late = statistics.median(values[:third]), statistics.median(values[-third:])
                outcome.figures[f"{name} {what}"] = late
                outcome.expect(late <= early + 1, f"{name}: {what} grew from {early:g} to {late:g}")


SCENARIOS = (
    Scenario(
        name="soak",
        injected=f"{HOUR_RECORDS} records, an hour at 30/s, put within --soak-seconds "
        f"(compressed), beside the daemon at {DAEMON_FPS:g} fps in real time; "
        f"{len(OUTAGES_AT)} outages "
        f"of {OUTAGE_S:g} s",
        run=soak,
        quick_seeds=range(0),
        alone=True,
    ),
)
