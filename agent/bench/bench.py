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

from agent.bench.session import Session, as_document, demo_clip, run_session
from agent.demo.children import Children, Signals
from agent.errors import EXIT_OK, AgentError


def run_bench(*, model: str, clip: str, seconds: float, runs: int, json_file: Path | None) -> int:
    """Measure, print a table, and write the figures."""
    clip = str(Path(clip or demo_clip()).resolve())
    rounds = []
    with Signals() as signals, tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        for number in range(runs):
            print(f"round {number + 1} of {runs}", file=sys.stderr)
            rounds.append(_round(model, clip, seconds, Path(folder), signals))
    document = {"model": model, "clip": clip, "seconds": seconds, "rounds": rounds}
    document["medians"] = medians = _medians(rounds)
    for line in table(medians):
        print(line)
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return EXIT_OK


def _raw(model: str, clip: str, seconds: float) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "agent.bench.raw", model, clip, str(seconds), "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AgentError(f"the bare interpreter failed: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _round(model: str, clip: str, seconds: float, folder: Path, signals: Signals) -> dict[str, Any]:
    def session(*, realtime: bool) -> Session:
        with Children(folder, signals) as children:
            return run_session(model, clip, seconds=seconds, realtime=realtime, children=children)

    raws = [_raw(model, clip, seconds / 2)]
    file = session(realtime=False)
    raws.append(_raw(model, clip, seconds / 2))
    paced = session(realtime=True)
    raws.append(_raw(model, clip, seconds / 2))
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
