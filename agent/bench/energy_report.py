"""What `edge-agent bench energy` found, as records, a document and lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.choices import Choice
from agent.telemetry.integral import Energy

# While the rest was measured, other programs may have used so much of the processor.
BUSY_PERCENT = 10.0
# A rest that changed by more than this share of the net power makes that uncertain.
DRIFT_SHARE = 0.1
EVERY_S = 0.1
# Between work and rest: processes end, buffers are written, regulators settle.
SETTLE_S = 3.0
# What MLPerf Power asks for (arXiv 2410.12032).
WHOLE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and for how long."""

    model: str
    clip: str
    seconds: float
    idle_s: float
    fps: float = 0.0  # 0: as fast as it can
    root: Path = Path("/")
    every_s: float = EVERY_S
    settle_s: float = SETTLE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The board while nothing of ours ran but the sampler."""

    energy: Energy
    busy_percent: float  # of all cores together, by whatever else runs here


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement; `board` is its id."""

    board: str
    every_s: float
    before: Rest
    work: Energy
    after: Rest
    inferences: int
    throttled: bool | None
    sampler_cpu_ms: float | None

    @property
    def rests(self) -> dict[str, Rest]:
        """Return both rests by when they were."""
        return {"at rest before": self.before, "at rest after": self.after}

    @property
    def why_invalid(self) -> str | None:
        """Return why the figures cannot be trusted, None if they can."""
        rests = {name: rest.energy for name, rest in self.rests.items()}
        for name, energy in {"at work": self.work, **rests}.items():
            if energy.why_invalid is not None:
                return f"{name}: {energy.why_invalid}"
            if (energy.scope, energy.sensor) != (self.work.scope, self.work.sensor):
                return f"{name} another sensor measured: {energy.sensor}"
        return None if self.inferences else "no result came"

    @property
    def idle_w(self) -> float | None:
        """Return the mean power at rest, of before and after alike."""
        before, after = self.before.energy.mean_w, self.after.energy.mean_w
        return (before + after) / 2 if before is not None and after is not None else None

    @property
    def drift_w(self) -> float | None:
        """Return what the rest drew after the work more than before."""
        before, after = self.before.energy.mean_w, self.after.energy.mean_w
        return after - before if before is not None and after is not None else None


def as_document(plan: Plan, choice: Choice, measured: Measured) -> dict[str, Any]:
    """Return the figures for a JSON file; of an invalid measurement none is given."""
    work = measured.work
    is_valid = measured.why_invalid is None
    gross_j = work.gross_j if is_valid else None
    idle_w = measured.idle_w if is_valid else None
    net_j = work.net_j(idle_w) if idle_w is not None else None
    count = measured.inferences

    def each_mj(joules: float | None) -> float | None:
        return None if joules is None or not count else 1e3 * joules / count

    return {
        "model": plan.model,
        "clip": plan.clip,
        "fps_wanted": plan.fps,
        "choice": msgspec.to_builtins(choice),
        "root": str(plan.root),
        "board": measured.board,
        "sensor": work.sensor,
        "scope": work.scope,
        "source": work.source,
        "valid": is_valid,
        "why_invalid": measured.why_invalid,
        "window_s": work.seconds,
        "inferences": count,
        "inferences_per_s": count / work.seconds if work.seconds else None,
        "mean_w": work.mean_w if is_valid else None,
        "idle_w": idle_w,
        "drift_w": measured.drift_w if is_valid else None,
        "gross_j": gross_j,
        "net_j": net_j,
        "gross_mj_per_inference": each_mj(gross_j),
        "net_mj_per_inference": each_mj(net_j),
        "samples": work.samples,
        "sample_every_s": measured.every_s,
        "largest_gap_s": work.largest_gap_s,
        "coverage": work.coverage,
        "sampler_cpu_ms": measured.sampler_cpu_ms,
        "rest": {name: _rest(one) for name, one in measured.rests.items()},
        "throttled": measured.throttled,
        "notes": notes(plan, measured),
    }


def _rest(rest: Rest) -> dict[str, Any]:
    energy = rest.energy
    return {
        "mean_w": energy.mean_w if energy.why_invalid is None else None,
        "seconds": energy.seconds,
        "samples": energy.samples,
        "largest_gap_s": energy.largest_gap_s,
        "cpu_percent": rest.busy_percent,
    }


def notes(plan: Plan, measured: Measured) -> list[str]:
    """Return what one must know to believe the figures as far as they go, and no further."""
    said = [
        f"of the scope {measured.work.scope}, not of the plug; no MLPerf figure",
        "the broker and the subscriber of this measurement ran on the board as well",
    ]
    if plan.root != Path("/"):
        said.append(f"the sensors are those below {plan.root}, not this board's")
    if plan.seconds < WHOLE_WINDOW_S:
        said.append(f"a window of {plan.seconds:g} s; public protocols want {WHOLE_WINDOW_S:g} s")
    for name, rest in measured.rests.items():
        if rest.busy_percent > BUSY_PERCENT:
            said.append(f"{name} processors were busy for {rest.busy_percent:.0f} % of the time")
    if measured.throttled:
        said.append("the board was throttled while it worked")
    mean_w, idle_w, drift_w = measured.work.mean_w, measured.idle_w, measured.drift_w
    if mean_w is None or idle_w is None or drift_w is None:
        return said
    if abs(drift_w) > DRIFT_SHARE * abs(mean_w - idle_w):
        said.append(f"the rest changed by {drift_w:+.3f} W: net is uncertain by as much")
    return said


def lines(document: dict[str, Any]) -> list[str]:
    """Return the document as aligned lines for people."""
    rest = document["rest"].values()
    rows = [
        ("board", document["board"]),
        ("sensor", f"{document['sensor']}, scope {document['scope']}, by {document['source']}"),
        ("inferences", f"{document['inferences']} in {document['window_s']:.2f} s"),
        ("mean power", _shown(document["mean_w"], "W")),
        ("at rest before, after", ", ".join(_shown(one["mean_w"], "W") for one in rest)),
        ("gross", _shown(document["gross_j"], "J")),
        ("net of the rest", _shown(document["net_j"], "J")),
        ("gross per inference", _shown(document["gross_mj_per_inference"], "mJ")),
        ("net per inference", _shown(document["net_mj_per_inference"], "mJ")),
        ("samples", f"{document['samples']}, one each {document['sample_every_s']:g} s"),
        ("largest gap", _shown(document["largest_gap_s"], "s")),
        ("coverage", _shown(document["coverage"], "of the window")),
    ]
    why = document["why_invalid"]
    rows.append(("valid", "yes" if why is None else f"no: {why}"))
    width = max(len(name) for name, _ in rows)
    return [
        *(f"{name:<{width}}  {value}" for name, value in rows),
        *(f"note: {note}" for note in document["notes"]),
    ]


def _shown(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3f} {unit}"
