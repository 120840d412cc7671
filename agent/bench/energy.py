"""`edge-agent bench energy`: what an inference costs, by the board's own sensor.

At rest, at work, at rest again: the daemon plays a clip to a broker on this board, results are
counted by a subscriber, and the sensor is read by the bench all the while, so that its own cost is
in all three. Gross is all that the sensor's scope drew, net what came on top of the rest.

These are no MLPerf figures: those want an external analyser at the plug.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from agent.bench.bench import tuned, write_json
from agent.bench.energy_report import (
    WHOLE_WINDOW_S,
    Measured,
    Plan,
    Rest,
    as_document,
    lines,
)
from agent.bench.session import Played, config_of_clip, demo_clip, play, wait
from agent.choices import Choice
from agent.contract.reading import Power
from agent.daemon.instance import LOCK_FILE, acquire
from agent.demo.children import Children, Interrupted, Signals
from agent.demo.demo import EXIT_SIGNAL
from agent.errors import EXIT_FAILURE, EXIT_OK, AgentError, UnavailableError
from agent.sensors.files import BoardFiles
from agent.sensors.hwmon import find_chips
from agent.sensors.reader import BoardReader, Look
from agent.sensors.replay import open_board
from agent.sensors.sampler import Sampler
from agent.telemetry.baseline import Baseline, write_baseline
from agent.telemetry.integral import LEAST_SAMPLES, measure, sample_of

# A window of less than WHOLE_WINDOW_S is taken if it has so many samples, and says so.
LEAST_IN_SHORT = 100
LEAST_IDLE_S = 10.0
LONGEST_S = 3600.0
# What else runs on a board belongs to its rest; what does as much is not always there.
BUSIEST_PERCENT = 50.0
# A counter tells power from its second look on.
LOOKS = 3
LOOKS_APART_S = 0.3

AS_ROOT = "Run it as root, or let its user read the files of that sensor"
WHAT_TO_FIT = (
    "A board without a sensor can be given one: an INA219, INA226, INA228 or INA238 in its supply"
    " line, on I2C; on a Raspberry Pi `dtoverlay=i2c-sensor,ina219` in config.txt makes it known,"
    " and it is then found by itself. Without one there is `edge-agent sensors calibrate` for an"
    " estimate, which is never an energy"
)


def run_energy(plan: Plan, *, state_dir: Path, save: bool, json_file: Path | None) -> int:
    """Measure, print figures, keep the baseline if asked to; 1 if the figures are invalid.

    Raises:
        AgentError: the plan makes no sense, or the daemon gives no results.
        UnavailableError: no sensor measures power here, or an agent runs on `state_dir`.
    """
    if not (0 < plan.seconds <= LONGEST_S and LEAST_IDLE_S <= plan.idle_s <= LONGEST_S):
        raise AgentError(
            f"--seconds must be above 0 and up to {LONGEST_S:.0f}, --idle from {LEAST_IDLE_S:.0f}"
        )
    # A daemon at work would be taken for the board at rest.
    lock = acquire(state_dir) if (state_dir / LOCK_FILE).exists() else None
    try:
        with Signals() as signals, tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
            try:
                choice, measured = measure_energy(plan, Path(folder), signals)
            except Interrupted:
                return EXIT_SIGNAL + signals.last
    finally:
        if lock is not None:
            lock.release()
    document = as_document(plan, choice, measured)
    for line in lines(document):
        print(line)
    if save:
        document["baseline_file"] = _keep_baseline(state_dir, measured)
    if json_file is not None:
        write_json(json_file, document)
    return EXIT_OK if measured.why_invalid is None else EXIT_FAILURE


def measure_energy(plan: Plan, folder: Path, signals: Signals) -> tuple[Choice, Measured]:
    """Measure; see `run_energy`. Nothing is running when this is called, nor when it returns."""
    board = open_board(plan.root)
    reader = BoardReader(files=board.files, ask=board.ask)
    power = first_power(reader)
    every_s = max(plan.every_s, sensor_interval_s(board.files, power.sensor))
    choice = tuned(plan.model, folder)
    clip = str(Path(plan.clip or demo_clip()).resolve())
    looks: list[Look] = []
    sampler = Sampler(reader, every_s=every_s, on_look=looks.append)
    sampler.start()
    try:
        before = _rest(plan, looks, every_s, signals, "at rest")
        _say(f"at work for {plan.seconds:g} s")
        with Children(folder, signals) as children:
            played = play(
                lambda port: config_of_clip(plan.model, clip, port, folder, fps=plan.fps),
                ["clip"],
                seconds=plan.seconds,
                children=children,
            )
        after = _rest(plan, looks, every_s, signals, "at rest again")
    finally:
        sampler.stop()
    samples = [sample_of(look) for look in looks]
    least = LEAST_SAMPLES if plan.seconds >= WHOLE_WINDOW_S else LEAST_IN_SHORT
    work = measure(samples, played.began_s, played.ended_s, every_s=every_s, least_samples=least)
    return choice, Measured(
        board=looks[-1].reading.board_id.id,
        every_s=every_s,
        before=before,
        work=work,
        after=after,
        inferences=len(played.arrivals["clip"]),
        throttled=_throttled(looks, played),
        sampler_cpu_ms=sampler.cpu_ms,
    )


def first_power(reader: BoardReader) -> Power:
    """Return what the board's sensor says of power.

    Raises:
        UnavailableError: nothing measures it.
    """
    power = reader.read().reading.power
    for _ in range(LOOKS - 1):
        if power.kind == "measured":
            return power
        time.sleep(LOOKS_APART_S)
        power = reader.read().reading.power
    if power.kind == "measured":
        return power
    reason = "it is estimated only" if power.kind == "estimated" else power.reason or "unknown"
    hint = AS_ROOT if "permission: " in reason else WHAT_TO_FIT
    raise UnavailableError(f"nothing measures power here: {reason}. {hint}")


def sensor_interval_s(files: BoardFiles, sensor: str | None) -> float:
    """Return how often the chip that is named first has new values, 0 where it does not say.

    hwmon's `update_interval`, in milliseconds (the kernel's sysfs-interface.rst).
    """
    chip = (sensor or "").split()[:1]
    said = [
        files.read(f"{one.folder}/update_interval")
        for one in find_chips(files)
        if [one.name.lower()] == chip
    ]
    return max((int(text) / 1e3 for text in said if text and text.isdecimal()), default=0.0)


def _rest(plan: Plan, looks: Sequence[Look], every_s: float, signals: Signals, name: str) -> Rest:
    wait(signals, plan.settle_s)
    _say(f"{name} for {plan.idle_s:g} s")
    psutil.cpu_percent()
    began_s = time.monotonic()
    wait(signals, plan.idle_s)
    ended_s = time.monotonic()
    busy = float(psutil.cpu_percent())
    wait(signals, 2 * every_s)  # the sample behind the end
    samples = [sample_of(look) for look in list(looks)]
    return Rest(energy=measure(samples, began_s, ended_s, every_s=every_s), busy_percent=busy)


def _throttled(looks: Sequence[Look], played: Played) -> bool | None:
    """Return whether the board was slowed down at any time of its work."""
    said = [
        look.reading.throttle.throttled_now
        for look in looks
        if look.reading.throttle is not None and played.began_s <= look.at_s <= played.ended_s
    ]
    return True if True in said else False if False in said else None


def _keep_baseline(state_dir: Path, measured: Measured) -> str | None:
    """Keep what the board draws at rest for the daemon, which takes it when it starts next.

    Raises:
        UnavailableError: the folder takes nothing.
    """
    idle_w, drift_w = measured.idle_w, measured.drift_w
    if measured.why_invalid is not None or idle_w is None or drift_w is None:
        print("not kept as a baseline, as it is invalid")
        return None
    busy_percent = max(rest.busy_percent for rest in measured.rests.values())
    if busy_percent > BUSIEST_PERCENT:
        print(f"not kept as a baseline: at rest processors were busy for {busy_percent:.0f} %")
        return None
    before, after = measured.before.energy, measured.after.energy
    baseline = Baseline(
        board=measured.board,
        scope=before.scope,
        sensor=before.sensor or "",
        idle_w=idle_w,
        drift_w=drift_w,
        seconds=before.seconds + after.seconds,
        samples=before.samples + after.samples,
        measured_at=time.time(),
    )
    try:
        path = write_baseline(state_dir, baseline)
    except OSError as error:
        raise UnavailableError(
            f"the baseline cannot be kept in {state_dir}: {error.strerror}; run this as the user"
            " of the service, or name another state_dir with --config"
        ) from error
    print(f"kept in {path}: net energy is in telemetry from the daemon's next start on")
    return str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
