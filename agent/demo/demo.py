"""The demo, top to bottom: broker, subscriber, daemon, results, summary, and all of it away again.

Everything runs in one temporary folder and on loopback. The daemon is the real one, started
as `edge-agent run` would be, with a configuration of five lines that plays the clip.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent.contract.topics import Topics
from agent.demo.broker import HOST, LocalBroker, start_broker
from agent.demo.children import Child, Children, Interrupted, Signals
from agent.demo.story import Story
from agent.demo.subscriber import Subscriber
from agent.demo.summary import hints, summary_rows, verdict
from agent.demo.usage import Use
from agent.demo.view import Scene, View, choose_view
from agent.errors import EXIT_OK, EXIT_USAGE, AgentError, UnavailableError

CLIP = Path(__file__).with_name("clip.mp4")
DEVICE = CAMERA = "demo"
PREFIX = "edge"
LONGEST_S = 3600.0  # every sample is kept
SILENT_S = 30.0
TICK_S = 0.1
# Drawing takes at most a fifth of the time, as a slow board needs it for results.
TICK_PER_DRAWING = 4
LOG_LINES = 15
EXIT_SIGNAL = 128  # plus the signal's number, as shells report it
# A thread that wants to note the time of a message waits this long for one that draws; the
# default of 5 ms would be a good part of the latency that is measured.
SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is left to tell when every child has ended."""

    scene: Scene
    use: dict[str, Use]
    log: list[str]
    failure: AgentError | None = None
    is_interrupted: bool = False


def run_demo(seconds: float) -> int:
    """Play the clip for so many seconds from the first result on; return the exit code.

    Raises:
        AgentError: the run failed; the daemon's last words are on stderr by then.
    """
    if not 0 < seconds <= LONGEST_S:  # refuses nan as well
        print(f"edge-agent: --seconds must be above 0, up to {LONGEST_S:.0f}", file=sys.stderr)
        return EXIT_USAGE
    if not CLIP.exists():
        raise UnavailableError(f"{CLIP} is missing; install the agent again")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    view = choose_view()
    with Signals() as signals:
        try:
            with closing(view):
                ending = _play(seconds, view, signals)
        except Interrupted:
            return EXIT_SIGNAL + signals.last
        if ending.is_interrupted:
            _tell(ending, view, hints(_program()))
            return EXIT_SIGNAL + signals.last
        return _judge(ending, view)


def _play(seconds: float, view: View, signals: Signals) -> Ending:
    """Start everything, follow the results to the end, end everything."""
    with (
        tempfile.TemporaryDirectory(prefix="edge-agent-demo-") as folder,
        Children(Path(folder), signals) as children,
    ):
        view.waiting("a broker to start", time.monotonic())
        broker = start_broker(children)
        names = Topics(PREFIX, DEVICE)
        with Subscriber(broker, names, CAMERA, signals) as subscriber:
            story = Story(spawned_at=time.monotonic(), seconds=seconds)
            daemon = children.start("daemon", _daemon_command(Path(folder), broker.port))
            failure, is_interrupted = None, False
            try:
                _follow(story, subscriber, view, _Watch(broker, daemon, signals))
            except AgentError as error:
                failure = error
            except Interrupted:
                is_interrupted = True
            scene = Scene(now=time.monotonic(), broker=broker.title, story=story)
            use = story.usage.read()
            children.end(daemon)
            return Ending(
                scene=scene,
                use=use,
                log=daemon.tail(LOG_LINES),
                failure=failure,
                is_interrupted=is_interrupted,
            )


def _daemon_command(folder: Path, port: int) -> list[str]:
    """Write the configuration; return what starts the daemon with it."""
    # A JSON string is a TOML string, as long as nothing outside ASCII is escaped.
    quoted = {
        "clip": json.dumps(str(CLIP), ensure_ascii=False),
        "state": json.dumps(str(folder / "state"), ensure_ascii=False),
    }
    config = folder / "agent.toml"
    config.write_text(
        f"""\
[device]
id = "{DEVICE}"
state_dir = {quoted["state"]}
[[camera]]
name = "{CAMERA}"
source = {quoted["clip"]}
realtime = true
loop = true
[mqtt]
url = "mqtt://{HOST}:{port}"
prefix = "{PREFIX}"
[telemetry]
interval_s = 1.0
""",
        encoding="utf-8",
    )
    return [sys.executable, "-m", "agent", "--log-level", "INFO", "run", "--config", str(config)]


@dataclass(frozen=True, slots=True)
class _Watch:
    """Whose death ends the demo."""

    broker: LocalBroker
    daemon: Child
    signals: Signals

    def check(self) -> None:
        """Raise what has ended that should not have."""
        if self.broker.child.process.poll() is not None:
            said = " | ".join(self.broker.child.tail(3))
            raise UnavailableError(
                f"the broker {self.broker.title} {self.broker.child.obituary()}; it said: {said}"
            )
        if self.daemon.process.poll() is not None:
            raise AgentError(
                f"the daemon {self.daemon.obituary()}; its last words are above, and"
                " `edge-agent check` examines this board"
            )


def _follow(story: Story, subscriber: Subscriber, view: View, watch: _Watch) -> None:
    """Receive and show until the time is up."""
    while True:
        now = time.monotonic()
        for received in subscriber.drain():
            story.take(received)
        story.follow_processes(watch.daemon.process.pid)
        if story.ends_at is not None and now >= story.ends_at:
            return
        watch.check()
        _check_silence(story, now)
        if story.figures.results:
            view.playing(Scene(now=now, broker=watch.broker.title, story=story))
        else:
            view.waiting(story.waiting_for(), now)
        drawing_s = time.monotonic() - now
        watch.signals.sleep(max(TICK_S - drawing_s, TICK_PER_DRAWING * drawing_s))


def _check_silence(story: Story, now: float) -> None:
    figures = story.figures
    if now - (figures.last_at if figures.results else story.spawned_at) <= SILENT_S:
        return
    why = story.problems() or f"the demo waits for {story.waiting_for()}"
    raise AgentError(
        f"no result for {SILENT_S:.0f} s: {why}; `edge-agent check` examines this board"
    )


def _program() -> str:
    """Return how to call this program again from here: its name where the shell finds it."""
    called = Path(sys.argv[0])
    if called.name != "edge-agent" or shutil.which("edge-agent") == str(called):
        return "edge-agent"
    return os.path.relpath(called)


def _judge(ending: Ending, view: View) -> int:
    """Print the summary and return success, or show the daemon's log and raise what was wrong."""
    failure = ending.failure
    if failure is None:
        story = ending.scene.story
        problem = verdict(story.figures, seconds=story.seconds, silent_s=ending.scene.silent_s)
        _tell(ending, view, [] if problem else hints(_program()))
        if not problem:
            return EXIT_OK
        failure = AgentError(problem)
    print("the daemon's last words:", file=sys.stderr)
    print("\n".join(f"  {line}" for line in ending.log or ["(none)"]), file=sys.stderr)
    raise failure


def _tell(ending: Ending, view: View, next_steps: list[str]) -> None:
    if ending.scene.story.figures.results:
        view.summary(summary_rows(ending.scene, ending.use), next_steps)
