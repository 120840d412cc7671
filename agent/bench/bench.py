"""`edge-agent bench`: the whole agent against the bare interpreter, measured in turn.

Each round measures raw, clip as a file, raw, clip in real time, raw: the machine's drift falls
on both sides, and every ratio is against the raw runs next to it. Medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from agent.bench.session import STATE_FOLDER, Session, as_document, demo_clip, run_session
from agent.choices import Choice
from agent.demo.children import Children, Interrupted, Signals
from agent.demo.demo import EXIT_SIGNAL
from agent.errors import EXIT_OK, AgentError, UnavailableError


def run_bench(*, model: str, clip: str, seconds: float, runs: int, json_file: Path | None) -> int:
    """Measure, print a table, and write the figures."""
    clip = str(Path(clip or demo_clip()).resolve())
    rounds = []
    choice: Choice | None = None
    with Signals() as signals, tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        try:
            for number in range(runs):
                if choice is None:
                    choice = tuned(model, Path(folder))
                    print(f"runs as  {choice.describe()}")
                print(f"round {number + 1} of {runs}", file=sys.stderr)
                rounds.append(_round(model, choice, clip, seconds, Path(folder), signals))
        except Interrupted:
            return EXIT_SIGNAL + signals.last
    document = {"model": model, "clip": clip, "seconds": seconds, "rounds": rounds}
    document["choice"] = msgspec.to_builtins(choice)
    document["medians"] = medians = _medians(rounds)
    for line in table(medians):
        print(line)
    if json_file is not None:
        write_json(json_file, document)
    return EXIT_OK


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write the figures.

    Raises:
        UnavailableError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"--json {path}: cannot be written: {error.strerror}") from error


def tuned(model: str, folder: Path) -> Choice:
    """Measure how the model runs best here, where the daemon will find it; see `model tune`."""
    config = folder / "tune.toml"
    state = json.dumps(str(folder / STATE_FOLDER))
    config.write_text(f"[device]\nstate_dir = {state}\n", encoding="utf-8")
    command = ["-m", "agent", "model", "tune", model, "--config", str(config), "--json"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AgentError(f"it could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return msgspec.convert(json.loads(done.stdout)["choice"], Choice)


def _raw(model: str, choice: Choice, clip: str, seconds: float) -> dict[str, float]:
    """Run the yardstick in the same way as the daemon runs the model."""
    how = [choice.runtime, "on" if choice.xnnpack else "off", str(choice.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "agent.bench.raw", model, clip, str(seconds), *how],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AgentError(f"the bare interpreter failed: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _round(
    model: str, choice: Choice, clip: str, seconds: float, folder: Path, signals: Signals
) -> dict[str, Any]:
    def session(*, realtime: bool) -> Session:
        with Children(folder, signals) as children:
            return run_session(model, clip, seconds=seconds, realtime=realtime, children=children)

    raws = [_raw(model, choice, clip, seconds / 2)]
    file = session(realtime=False)
    raws.append(_raw(model, choice, clip, seconds / 2))
    paced = session(realtime=True)
    raws.append(_raw(model, choice, clip, seconds / 2))
    beside_file = statistics.mean(raw["invoke_p50_ms"] for raw in raws[:2])
    beside_paced = statistics.mean(raw["invoke_p50_ms"] for raw in raws[1:])
    beside_paced_30 = statistics.mean(raw["invoke_at_30_fps_p50_ms"] for raw in raws[1:])
    bare_cpu = statistics.median(raw["decode_cpu_ms"] + raw["invoke_cpu_ms"] for raw in raws)
    return {
        "raw": raws,
        "file": as_document(file),
        "paced": as_document(paced),
        "figures": {
            "raw invoke, p50 ms": statistics.median(raw["invoke_p50_ms"] for raw in raws),
            "decode, CPU ms": statistics.median(raw["decode_cpu_ms"] for raw in raws),
            "file: results/s": file.results_per_s,
            "file: results/s of 1 / raw invoke": file.results_per_s * beside_file / 1e3,
            "file: CPU ms per frame, both processes": file.cpu_ms,
            "file: CPU of decode + raw invoke": file.cpu_ms / bare_cpu,
            "30 fps: capture to subscriber, p50 ms": paced.latency_p50_ms,
            "30 fps: p50 above raw invoke, ms": paced.latency_p50_ms - beside_paced,
            "30 fps: p50 above raw invoke at 30 fps, ms": paced.latency_p50_ms - beside_paced_30,
            "30 fps: capture to subscriber, p99 ms": paced.latency_p99_ms,
            "30 fps: p99 allowed, 2.5 x raw + 5 ms": 2.5 * beside_paced + 5,
            "30 fps: dropped frames": float(paced.dropped),
            "memory of both processes, PSS MiB": max(file.pss_mib, paced.pss_mib),
            "first result after start, s": max(file.first_result_s, paced.first_result_s),
        },
    }


def _medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    names = rounds[0]["figures"]
    return {name: statistics.median(one["figures"][name] for one in rounds) for name in names}


def table(medians: dict[str, float]) -> list[str]:
    """Return the figures as aligned lines."""
    width = max(map(len, medians))
    return [f"{name:<{width}}  {value:10.3f}" for name, value in medians.items()]
