"""Prints what fetching a bundle costs the results of a board: `python tests/e2e/update_figures.py`.

The shipped model at 30 frames a second under a real broker; a bundle of 60 MB over HTTP, given out
at 2.5 MB a second for two seconds, then not at all for two, and so on. Latency is from capture to
the encoded result, as each of them says.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "vision"), str(TESTS / "operator")]

import numpy as np  # noqa: E402
from bad_models import made_classifier  # noqa: E402
from brokers import mosquitto  # noqa: E402
from harness import CLIP, Agent, Subscriber  # noqa: E402
from made_repository import Site  # noqa: E402
from update_rig import UpdatedBoard  # noqa: E402

ROUNDS = 5
BUNDLE_BYTES = 60 << 20
BYTES_A_SECOND = 5 << 19
PIECE = 64 << 10
# By turns it sends and is silent for so long; so whatever else a shared machine does meets both.
TURN_S = 2.0
# Of each turn, its first part is not counted: what was under way belongs to the one before.
SETTLES_S = 0.3


def is_sending(at: float) -> bool:
    """Return whether a Unix time lies in a turn in which the web server sends."""
    return int(at / TURN_S) % 2 == 0


class ByTurns(SimpleHTTPRequestHandler):
    """A web server behind a line of so many bytes a second, which is cut for every other turn."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file."""
        while piece := source.read(PIECE):
            while len(piece) == PIECE and not is_sending(time.time()):
                time.sleep(0.01)
            outputfile.write(piece)
            time.sleep(len(piece) / BYTES_A_SECOND)


def latencies(messages: list[Any]) -> tuple[list[float], list[float]]:
    """Return the latencies of results, in ms: of frames of turns without sending, and with."""
    turns: tuple[list[float], list[float]] = ([], [])
    for message in messages:
        if message.topic.endswith("/detections"):
            at = message.json["captured_at"]
            if at % TURN_S > SETTLES_S:
                turns[is_sending(at)].append(message.json["latency_ms"])
    return turns


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(times, n=100)[98]


def main() -> None:
    """Measure in turn with nothing beside, and while a bundle is fetched."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        broker = mosquitto(home).start()
        subscriber = Subscriber(broker.port)
        site = Site(home / "operator")
        site.home.mkdir()
        board = UpdatedBoard(home, broker, subscriber, site.init())
        board.factory = "default"
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(ByTurns, directory=str(site.folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        agent = Agent(home, board.config(str(CLIP), repository=url))
        try:
            measure(board)
        finally:
            agent.stop()
            server.shutdown()
            subscriber.close()
            broker.stop()


def measure(board: UpdatedBoard) -> None:
    """Print a line for each round, then what all of them say together."""
    board.serves("default", 120)
    time.sleep(5)
    noise = np.random.default_rng(1).integers(0, 255, BUNDLE_BYTES, np.uint8)
    every: tuple[list[float], list[float]] = ([], [])
    ratios = []
    for number in range(ROUNDS):
        golden = {"input_0": noise, "class_ids_0": np.array([number])}
        order = board.order(board.publish(made_classifier(5), golden=golden))
        wait_for(board, order, {"downloading"})
        since = len(board.subscriber.messages)
        wait_for(board, order, {"verify", "selftest", "refused"})
        turns = latencies(board.subscriber.messages[since:])
        board.end_of(order)
        for all_of, of_round in zip(every, turns, strict=True):
            all_of.extend(of_round)
        quiet, fetching = map(p99, turns)
        ratios.append(fetching / quiet)
        print(f"p99 quiet {quiet:.1f} ms, fetching {fetching:.1f} ms: {ratios[-1]:.2f}", flush=True)
    quiet, fetching = map(p99, every)
    print(f"{len(every[0])} and {len(every[1])} frames: {quiet:.1f} ms, {fetching:.1f} ms")
    print(f"together {fetching / quiet:.2f}, median of rounds {statistics.median(ratios):.2f}")


def wait_for(board: UpdatedBoard, order: str, phases: set[str]) -> None:
    """Wait until a board reports one of some phases."""
    board.subscriber.wait(lambda: any(one["phase"] in phases for one in board.reports(order)), 200)


if __name__ == "__main__":
    main()
