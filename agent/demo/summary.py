"""The closing summary as rows of text, the verdict, and what to try next. Pure."""

from __future__ import annotations

from agent.demo.figures import STAGES, Figures, LabelSeen
from agent.demo.story import Story
from agent.demo.usage import Use
from agent.demo.view import Scene, accelerator_text, broker_text, model_text, number

# The clip's length, and what hangs on its wall.
CLIP_S = 9.0
SHOWN = ("person", "cat", "cup")
# A daemon that stopped publishing so long before the end did not run to the end.
STALLED_S = 3.0


def hints(program: str) -> list[str]:
    """Return what to try next; `program` is how this one was called."""
    return [
        "Try next:",
        f"  {program} detect default photo.jpg --save out    boxes drawn into your photo",
        f"  {program} check                                  is this board ready?",
        "  mosquitto_sub -h localhost -t 'edge/#' -v    what a running agent publishes",
        f"For a camera, put this into agent.toml: {program} run --config agent.toml",
        "  [[camera]]",
        '  name = "door"',
        '  source = "/dev/video0"',
    ]


def summary_rows(scene: Scene, use: dict[str, Use]) -> list[tuple[str, str]]:
    """Return the summary, one (name, text) per row."""
    story, figures = scene.story, scene.story.figures
    if not figures.results:
        return [("results", "none")]
    latency = figures.latency
    rows = [
        ("results", _results(figures)),
        (
            "latency",
            f"capture to subscriber: p50 {number(latency.percentile(50))} ms,"
            f" p99 {number(latency.percentile(99))} ms, max {number(latency.highest)} ms",
        ),
        ("stages", _stages(figures)),
        ("frames", f"{figures.dropped} dropped for newer ones, {figures.lost} lost{_gaps(story)}"),
        ("seen", _labels(figures.labels)),
        *((f"{name} process", _use(use[name])) for name in ("control", "worker") if name in use),
        ("first result", f"{figures.first_at - story.spawned_at:.1f} s after the daemon started"),
        ("model", f"{model_text(scene)} on {accelerator_text(scene)}"),
        ("broker", broker_text(scene)),
    ]
    restarts = story.telemetry.worker_restarts if story.telemetry else 0
    if restarts:
        rows.append(("restarts", f"the worker was replaced {restarts} times"))
    return rows


def _results(figures: Figures) -> str:
    rate = f", {figures.fps:.1f} per second" if figures.fps is not None else ""
    return f"{figures.results} in {figures.lasted_s:.1f} s{rate}"


def _stages(figures: Figures) -> str:
    medians = (f"{name} {number(figures.stages[name].percentile(50))}" for name in STAGES)
    return f"{', '.join(medians)} ms (medians)"


def _gaps(story: Story) -> str:
    named = sum(gap.count or 0 for gap in story.gaps)
    return f" ({named} of them given up by the daemon, which said so)" if named else ""


def _labels(labels: dict[str, LabelSeen]) -> str:
    ranked = sorted(labels.items(), key=lambda item: -item[1].results)
    words = (f"{name} {seen.results} times (best {seen.best_score:.2f})" for name, seen in ranked)
    return ", ".join(words) or "nothing"


def _use(use: Use) -> str:
    return f"{number(use.cpu_percent)} % of a core, {number(use.pss_mib)} MiB"


def plain(rows: list[tuple[str, str]]) -> list[str]:
    """Return the rows as aligned lines."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def verdict(figures: Figures, *, seconds: float, silent_s: float) -> str:
    """Say what is wrong with the run and what to do, or nothing."""
    if not figures.results:
        return "no result arrived; `edge-agent check` examines this board"
    if figures.lost:
        return (
            f"{figures.lost} results were lost between daemon and subscriber; this is a fault of"
            " the agent or its broker, please report it"
        )
    if silent_s > STALLED_S:
        return f"results stopped {silent_s:.1f} s before the end; `edge-agent check` may say why"
    if not figures.labels:
        return "results arrived, but nothing was detected; run it longer: --seconds 20"
    missing = [name for name in SHOWN if name not in figures.labels]
    # A shorter run need not have come past every picture.
    if missing and seconds >= CLIP_S:
        return (
            f"{', '.join(missing)} not seen, though the clip shows it; `edge-agent model inspect"
            " default` says which model runs"
        )
    return ""
