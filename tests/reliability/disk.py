"""Scenarios of the disk: full, damaged, and spared."""

from __future__ import annotations

import contextlib
import random
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from brokers import RunningBroker, free_port

from reliability.collector import Collector
from reliability.daemons import Agent, health
from reliability.observed_agent import Observation
from reliability.rig import Outcome, Producer, Rig
from reliability.scenario import Scenario

TMPFS_BYTES = 1 << 20
KEPT_MB = 8.0  # in all: far more than the disk holds, so the rest must wait in memory
# What is put during an outage, 12 MB: more than disk and memory may hold together.
OUTAGE_RECORDS, OUTAGE_BYTES = 3000, 4000
PUT_PER_S = 600.0
LIVE_RECORDS, LIVE_PER_S = 60, 100.0
PAGE_BYTES = 4096  # of SQLite, https://www.sqlite.org/pragma.html#pragma_page_size
MEMORY_FILESYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}
RESULTS_PER_S = 10.0
SETTLE_S = 5.0
NO_MOUNT = "mounting a small tmpfs is not permitted here"
SEEN_AFTER_S = 7.0  # the daemon looks at its outbox every 5 s


def disk_full(rig: Rig, seed: int) -> Outcome:
    """Seed 1: full before the start; 2: filled in an outage; 3: before it; 4: freed in it."""
    outcome = Outcome()
    ballast = _small_disk(rig)
    if ballast is None:
        return Outcome(skipped=NO_MOUNT)
    broker = rig.broker()
    collector = rig.collector(broker.port)
    if seed == 1:
        _fill(ballast)
    producer = rig.producer(broker.port, max_mb=KEPT_MB)
    producer.wait_connected()
    _live(producer, collector, outcome)
    if seed == 3:
        _fill(ballast)
    if seed > 1:
        _outage(rig, producer, broker, seed, outcome)
    _live(producer, collector, outcome)
    if seed == 1:
        outcome.expect(producer.counters()["alarm"], "no alarm although the disk is full")
    ballast.unlink(missing_ok=True)
    producer.wait_drained()
    _live(producer, collector, outcome)
    producer.stop()
    rig.check(collector, outcome, may_give_up=["queue_full"])
    _compare_with_gaps(collector, outcome)
    return outcome


def disk_full_seen(rig: Rig, _seed: int) -> Outcome:
    """The whole daemon on a disk that fills: its status says so, and says when it is over."""
    outcome = Outcome()
    ballast = _small_disk(rig)
    if ballast is None:
        return Outcome(skipped=NO_MOUNT)
    broker = rig.broker()
    collector = rig.collector(broker.port)
    observation = Observation(log=str(rig.logbook), folder=str(rig.folder))
    agent = Agent(rig, broker.port, observation=observation)
    agent.wait_heard(collector, 5)
    _fill(ballast)
    broker.stop()
    time.sleep(SEEN_AFTER_S)
    broker.start()
    began = time.monotonic()
    agent.wait_heard(collector, 10)
    outcome.figures["results again (s)"] = time.monotonic() - began

    def is_seen() -> bool:
        return any("outbox" in health(one.json) for one in collector.of("board-1/status"))

    def is_over() -> bool:
        return "outbox" not in health(collector.of("board-1/status")[-1].json)

    collector.wait(is_seen, 30, "a status that names the outbox")
    ballast.unlink()
    collector.wait(is_over, 60, "a status without the outbox")
    code, _ = agent.stop()
    outcome.expect(code == 0, f"exit code {code}")
    rig.check(collector, outcome)
    return outcome


def _small_disk(rig: Rig) -> Path | None:
    """Mount a small filesystem as the state folder; return where what fills it belongs."""
    state = rig.folder / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True).returncode:
        return None
    rig.keep(lambda: subprocess.run(["umount", str(state)], check=False))
    return state / "ballast"


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass


def _live(producer: Producer, collector: Collector, outcome: Outcome) -> None:
    """Publish while the broker is there; how long that takes is no matter, that it does is."""
    before = len(collector.heard)
    producer.produce(LIVE_RECORDS, LIVE_PER_S)
    try:
        collector.wait(lambda: len(collector.heard) >= before + LIVE_RECORDS, 30, "live records")
    except TimeoutError as error:
        outcome.bad.append(f"live publishing does not go on: {error}")


def _outage(
    rig: Rig, producer: Producer, broker: RunningBroker, seed: int, outcome: Outcome
) -> None:
    rig.say("broker away")
    broker.stop()
    producer.produce(OUTAGE_RECORDS, PUT_PER_S, payload_bytes=OUTAGE_BYTES)
    if seed == 4:
        producer.wait(lambda c: c["alarm"], 30, "an alarm")
        (rig.folder / "state" / "ballast").unlink(missing_ok=True)
    producer.wait(lambda c: not c["to_put"], 60, "putting")
    counters = producer.counters()
    outcome.expect(counters["alarm"], "no alarm although the disk is full")
    outcome.figures["on disk when full (records)"] = counters["on_disk"]
    broker.start()
    producer.wait_connected(60)
    producer.wait_drained(120)


def _compare_with_gaps(collector: Collector, outcome: Outcome) -> None:
    """Every record that gaps count must be one that was lost, and the other way round."""
    counted = sum(gap.count or 0 for gap in set(collector.gaps))
    lost = len(outcome.findings.lost)
    outcome.expect(counted == lost, f"gaps count {counted} records, {lost} were lost")


def damage(rig: Rig, seed: int) -> Outcome:
    """Write records to disk, damage one of the files, and start on what is left."""
    outcome = Outcome()
    chance = random.Random(seed)
    state = rig.folder / "state"
    broker = rig.broker()
    collector = rig.collector(broker.port)
    # Nothing listens there: all that is put goes to disk.
    writer = rig.producer(free_port())
    writer.produce(60, 300.0)
    writer.wait(lambda c: not c["to_put"] and c["on_disk"] == c["waiting"], 30, "the spill")
    writer.kill() if chance.random() < 0.5 else writer.stop()
    files = sorted(path for path in state.iterdir() if path.is_file() and path.stat().st_size)
    outcome.expect(files, "nothing was written")
    victim = chance.choice(files)
    how = _damage(victim, chance)
    rig.say(f"{victim.name}: {how}")
    began = time.monotonic()
    producer = rig.producer(broker.port)
    producer.wait_connected()
    outcome.figures["start on it (s)"] = time.monotonic() - began
    alarm = producer.counters()["alarm"]
    producer.produce(30, 300.0)
    producer.wait_drained()
    code, _ = producer.stop()
    outcome.expect(code == 0, f"{victim.name}, {how}: exit code {code}")
    rig.check(collector, outcome, may_give_up=["damaged", "restart"])
    was_replaced = any(".damaged" in path.name for path in state.iterdir())
    outcome.expect(alarm or not was_replaced, "the database was replaced without an alarm")
    outcome.figures["replaced"] = was_replaced
    outcome.figures["given up without an alarm"] = 0 if alarm else len(outcome.findings.lost)
    outcome.bad = [words if victim.name in words else f"{victim.name}, {how}: {words}"
                   for words in outcome.bad]  # fmt: skip
    return outcome


def _damage(path: Path, chance: random.Random) -> str:
    """Damage a file as cards and power cuts do; return what was done."""
    data = bytearray(path.read_bytes())
    kind = chance.choice(["flips", "flips", "flips", "page", "cut", "gone"])
    if kind == "flips":
        count = chance.randint(1, 32)
        for _ in range(count):
            at = chance.randrange(len(data))
            data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        return f"{count} bits flipped"
    if kind == "page":
        page = chance.randrange((len(data) - 1) // PAGE_BYTES + 1)
        end = min(len(data), (page + 1) * PAGE_BYTES)
        data[page * PAGE_BYTES : end] = bytes(end - page * PAGE_BYTES)
        path.write_bytes(data)
        return f"page {page} zeroed"
    if kind == "cut":
        left = chance.randrange(len(data))
        path.write_bytes(data[:left])
        return f"cut to {left} of {len(data)} bytes"
    path.unlink()
    return "removed"


def disk_writes(rig: Rig, _seed: int) -> Outcome:
    """Count what the daemon has the kernel write while all is well, and in an outage."""
    outcome = Outcome()
    kind = filesystem_of(rig.folder)
    if kind in MEMORY_FILESYSTEMS:
        return Outcome(skipped=f"{rig.folder} is on {kind}, where nothing is written to a disk")
    broker = rig.broker()
    collector = rig.collector(broker.port)
    # The log is the journal's business; in memory it is not counted.
    memory = Path("/dev/shm")
    log_folder = Path(tempfile.mkdtemp(prefix="reliability-", dir=memory))
    agent = Agent(rig, broker.port, fps=RESULTS_PER_S, log_folder=log_folder)
    rig.keep(lambda: [*map(Path.unlink, log_folder.iterdir()), log_folder.rmdir()])
    agent.wait_heard(collector, 20)
    time.sleep(SETTLE_S)
    for name, length_s in (
        ("online", 6.0 if rig.is_quick else 60.0),
        ("outage", 3.0 if rig.is_quick else 10.0),
    ):
        if name == "outage":
            broker.stop()
        rig.say(f"{name}, {length_s:g} s")
        before = _written(agent)
        heard = len(collector.heard)
        time.sleep(length_s)
        written = {process: after - before[process] for process, after in _written(agent).items()}
        for process, count in written.items():
            outcome.figures[f"{process}, {name} (bytes/s)"] = count / length_s
        if name == "online":
            outcome.figures["results/s"] = (len(collector.heard) - heard) / length_s
            outcome.expect(not any(written.values()), f"written to {kind} while online: {written}")
    broker.start()
    agent.stop()
    return outcome


def _written(agent: Agent) -> dict[str, int]:
    """Return write_bytes of each process: proc(5), what it caused to be sent to storage."""
    return {name: process.io_counters().write_bytes for name, process in agent.processes().items()}


def filesystem_of(folder: Path) -> str:
    """Return the type of the filesystem that holds a folder."""
    holders = [
        part
        for part in psutil.disk_partitions(all=True)
        if folder.resolve().is_relative_to(part.mountpoint)
    ]
    return str(max(holders, key=lambda part: len(part.mountpoint)).fstype) if holders else "unknown"


SCENARIOS = (
    Scenario(
        name="disk-full",
        injected=f"state on a tmpfs of {TMPFS_BYTES >> 10} KiB, filled before the start, in an "
        "outage, before it, and freed in it",
        run=disk_full,
        seeds=range(1, 5),
        quick_seeds=range(2, 3),
    ),
    Scenario(
        name="disk-full-seen",
        injected="the same to the whole daemon, which must say so in its status",
        run=disk_full_seen,
    ),
    Scenario(
        name="damaged-files",
        injected="60 records on disk, then bits flipped, a page zeroed, a file cut or removed",
        run=damage,
        seeds=range(1, 201),
        quick_seeds=range(1, 5),
    ),
    Scenario(
        name="disk-writes",
        injected=f"nothing for 60 s (quick: 6 s) of {RESULTS_PER_S:g} results/s; then an outage",
        run=disk_writes,
    ),
)
